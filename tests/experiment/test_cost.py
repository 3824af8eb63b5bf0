from __future__ import annotations

import csv
from pathlib import Path

import pytest

from affbench.experiment.bench import Spread
from affbench.experiment.cost import CostPoint, cost_figure


def test_cost_figure_comes_with_its_data(tmp_path: Path) -> None:
    points = [CostPoint("routings", n, Spread(100.0 / n, 90.0 / n, 110.0 / n)) for n in (1, 3, 10)]
    points += [CostPoint("canvas", n, Spread(50.0, 49.0, 51.0)) for n in (28, 40)]
    path = cost_figure(points, tmp_path / "cost.png", "capsnet on some device")
    assert path.read_bytes().startswith(b"\x89PNG")
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["varied"], row["value"]) for row in rows[:3]] == [
        ("routings", "1"),
        ("routings", "3"),
        ("routings", "10"),
    ]
    assert float(rows[1]["images_per_second_median"]) == pytest.approx(100 / 3, rel=1e-5)
