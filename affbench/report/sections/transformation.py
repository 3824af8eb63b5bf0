"""Where models break: accuracy by bins of each factor of the transformation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from affbench.analysis.results import Results
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.drawing import Drawing, Line, draw_lines, file_name, save_drawing
from affbench.report.sections import Section
from affbench.report.table import Cell, described, over_seeds, shares_table
from affbench.run.folder import BinShare, EvaluationRecord

Bin = tuple[str, float, float]
"""A factor, and the edges of one of its bins."""


def section(results: Results, folder: Path) -> Section:
    """A figure for each set with transformations, and its numbers as a table under it."""
    figures = (
        transformation_figure(results, name, folder / f"transformation-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    return Section("Where it breaks: by transformation", figures=tuple(filter(None, figures)))


def transformation_figure(results: Results, name: str, path: Path) -> Drawing | None:
    """Accuracy on one set as a curve over each factor of the transformation; None for a set without."""
    groups = {own.name: own for own in results.groups if own.records(name)}
    found = {model: [_binned(record) for record in own.records(name)] for model, own in groups.items()}
    bins = max((own for records in found.values() for own in records), key=len, default={})
    if not bins:
        return None
    strange = [model for model, records in found.items() if any(own.keys() - bins.keys() for own in records)]
    lines, cells, rows = list[Line](), dict[Cell, dict[str, list[BinShare]]](), []
    for model, own in groups.items():
        fitting = [record for record in found[model] if record.keys() <= bins.keys()]
        shares = {one: [record[one] for record in fitting if one in record] for one in bins}
        for (factor, low, high), of_bin in shares.items():
            unit = TRANSFORM_UNITS.get(factor, "")
            label = Cell(f"{factor.replace('_', ' ')} {low:.5g} to {high:.5g} {unit}".strip())
            models = cells.setdefault(label, {})
            if of_bin:
                models[model] = of_bin
                summary, band = over_seeds(of_bin)
                rows.append((model, factor, low, high, of_bin[0].n, summary.n, summary.mean, *band))
        lines += factor_lines(own.network, own.kept, own.look, shares)
    figure, _, said = draw_lines(lines, "accuracy %")
    if strange:
        said += f" Left out are runs that were tested on images with other bins, of {', '.join(strange)}."
    caption = (
        f"{described(name, results.groups)}, in equal bins of each factor; the other factors vary freely. Bands: "
        f"Wilson's 95% interval for one seed (images taken as independent), the range over seeds for several.{said}"
    )
    table = shares_table("By transformation", "Transformation", cells, results, name)
    header = ("model", "factor", "low", "high", "n", "seeds", "accuracy", "band_low", "band_high")
    return save_drawing(figure, path, f"Accuracy by transformation, {name}", caption, header, rows, table)


def _binned(record: EvaluationRecord) -> dict[Bin, BinShare]:
    found = record.by_transformation or {}
    return {(factor, own.low, own.high): own for factor, shares in found.items() for own in shares}


def factor_lines(
    network: str, kept: str, look: tuple[int, int], shares: Mapping[Bin, Sequence[BinShare]]
) -> list[Line]:
    """A line for each factor, from the shares of a model by seed in each bin."""
    points: dict[str, list[tuple[float, ...]]] = {}
    for (factor, low, high), found in shares.items():
        if found:
            summary, band = over_seeds(found)
            percents = (100 * value for value in (summary.mean, *band))
            points.setdefault(factor, []).append(((low + high) / 2, *percents))
    return [
        Line(factor.replace("_", " "), TRANSFORM_UNITS.get(factor, ""), network, kept, look, np.array(own))
        for factor, own in points.items()
    ]
