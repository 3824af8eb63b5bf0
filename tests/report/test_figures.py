"""Every figure comes as a picture with its data beside it."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import make_run, study

from affbench.analysis.results import Results, read_results
from affbench.report.drawing import COLOURS, OTHERS, Drawing, Line, draw_lines, line_look
from affbench.report.page import TEMPLATES
from affbench.report.sections import routing, training
from affbench.report.sections.accuracy import accuracy_figure
from affbench.report.sections.classes import confusion_figure
from affbench.report.sections.routing import routing_figure
from affbench.report.sections.transformation import transformation_figure


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(study(tmp_path_factory.mktemp("runs"), seeds=2))


def drawn(figure: Drawing | None) -> list[dict[str, str]]:
    """The rows of the data of a figure that must be there."""
    assert figure is not None
    with Image.open(figure.path) as image:
        assert image.size[0] > 300
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
    assert figure.path.stat().st_size < 300_000
    assert figure.caption
    with figure.data.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_curves_hold_every_epoch_of_every_run(tmp_path: Path, results: Results) -> None:
    section = training.section(results, tmp_path)
    assert section is not None
    rows = drawn(section.figures[0])
    assert len(rows) == 12 * 8


def test_accuracy_per_set_holds_every_model_and_set(tmp_path: Path, results: Results) -> None:
    rows = drawn(accuracy_figure(results, tmp_path / "accuracy.png"))
    assert len({tuple(row.values())[:2] for row in rows}) >= 2 * 6


def test_routing_sweep_holds_every_number_of_iterations(tmp_path: Path, results: Results) -> None:
    rows = drawn(routing_figure(results, tmp_path / "sweep.png"))
    text = " ".join(" ".join(row.values()) for row in rows)
    for routings in ("1", "3", "5", "10"):
        assert f" {routings} " in f" {text} "


def test_transformation_curves_hold_every_bin(tmp_path: Path, results: Results) -> None:
    rows = drawn(transformation_figure(results, "affnist-synthetic", tmp_path / "factors.png"))
    assert len(rows) == 6 * 24


def test_confusion_matrices_hold_every_pair(tmp_path: Path, results: Results) -> None:
    rows = drawn(confusion_figure(results, "affnist-synthetic", tmp_path / "confusion.png"))
    assert len(rows) >= 60


def test_figures_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    lonely = read_results([make_run(tmp_path / "runs", accuracy={})])
    assert accuracy_figure(lonely, tmp_path / "accuracy.png") is None
    assert routing.section(lonely, tmp_path) is None
    assert transformation_figure(lonely, "affnist-synthetic", tmp_path / "factors.png") is None
    assert not list(tmp_path.glob("*.png"))


def test_captions_say_where_axes_begin(tmp_path: Path) -> None:
    low = read_results([make_run(tmp_path / "low", accuracy={"mnist-translated": 0.0})])
    high = read_results([make_run(tmp_path / "high", accuracy={"mnist-translated": 0.9, "affnist-synthetic": 0.7})])
    drawn = [accuracy_figure(own, tmp_path / "figure.png") for own in (low, high)]
    assert ["begin at 0" in drawing.caption for drawing in drawn if drawing] == [False, True]


def test_a_network_keeps_its_look_and_its_twin_has_another_dash(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, f"Network {number}{twin}", name=f"{number}{stop}", model="cnn", stop_at=stop)
        for number in range(20)
        for twin, stop in (("", None), (", matched at 90%", 0.9))
    ]
    results = read_results(runs)
    assert [own.look for own in results.groups] == [(number, ending) for number in range(20) for ending in (0, 1)]
    assert [own.network for own in results.whole.groups] == [f"Network {number}" for number in range(20)]
    assert [own.look for own in results.whole.groups] == [(number, 0) for number in range(20)]
    looks = {tuple(map(str, line_look(*own.look).values())) for own in results.groups}
    assert len(looks) == len(results.groups)
    assert {line_look(number)["linestyle"] for number in range(20)} == {"-"}


# G. M. Machado et al., 2009, severity 1: linear RGB seen without red, green or blue cones, the first with all.
VISIONS = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen(colour: str) -> np.ndarray:
    """CIELAB of a colour for each vision (4, 3)."""
    levels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    white = TO_XYZ.sum(1)
    ratio = np.clip(VISIONS @ linear, 0, 1) @ TO_XYZ.T / white
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_colours_are_told_apart_with_any_colour_vision_in_both_themes() -> None:
    light, dark = re.findall(r"--c0.*", (TEMPLATES / "colours.css").read_text())
    assert re.findall(r"#\w{6}", light) == list(COLOURS)
    for palette in (COLOURS, re.findall(r"#\w{6}", dark)):
        assert len(palette) == 9
        for one, other in itertools.combinations(map(seen, palette), 2):
            assert np.linalg.norm(one - other, axis=1).min() > 14


@pytest.mark.parametrize(("networks", "panels"), [(7, 1), (8, 8)])
def test_eight_lines_become_small_multiples(networks: int, panels: int) -> None:
    points = np.array([(0.0, 1, 1, 1), (1, 2, 2, 2)])
    lines = [Line("rotation", "degrees", f"network {number}", "", (number, 0), points) for number in range(networks)]
    _, places, said = draw_lines(lines)
    assert len(places["rotation"]) == panels
    for number, axes in enumerate(places["rotation"]):
        coloured = [line for line in axes.get_lines() if line.get_color() != OTHERS]
        assert len(coloured) == (7 if panels == 1 else 1)
        assert coloured[0].get_color() == line_look(number)["color"]
    assert ("the others in grey" in said) == (panels > 1)


def test_confusions_of_all_networks_are_drawn(tmp_path: Path) -> None:
    results = read_results([make_run(tmp_path, f"Network {n}", name=f"run-{n}", model="cnn") for n in range(9)])
    svg = confusion_figure(results, "mnist-translated", tmp_path / "confusion.png").svg
    assert [f">Network {number}<" in svg for number in range(9)] == [True] * 9
