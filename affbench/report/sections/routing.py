"""Routing iterations: accuracy over their number, and what the sweep says about claims of earlier work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from affbench.analysis.claims import Judgement, judge_claims, sweep_points
from affbench.analysis.results import Group, Results
from affbench.base.statistics import SeedSummary
from affbench.report.drawing import Drawing, beginning, dress, legend, line_look, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import ABSENT, Cell, Table, described, percent, set_heading, whole


def section(results: Results, folder: Path) -> Section | None:
    """Table, figure and claims of the sweeps over routing iterations; None where nothing was swept."""
    figure = routing_figure(results.whole, folder / "routing-sweep.png")
    if figure is None:
        return None
    tables = (sweep_table(results.whole), claims_table(results.whole))
    return Section("Routing iterations", tuple(table for table in tables if table), (figure,))


def sweep_table(results: Results) -> Table | None:
    """Routing iterations × seeds: mean, sd and range on validation and every set; None where nothing was swept."""
    groups = [own for sweep in results.sweeps for own in sweep]
    if not groups:
        return None
    sets = [name for name in results.sets if any(own.records(name) for own in groups)]
    columns = ["Model", "Routings", "Seeds"]
    for heading in ("validation", *(set_heading(name, groups) for name in sets)):
        columns += [f"{heading}\nmean", "sd", "range"]
    rows = []
    for own in groups:
        cells = [Cell(own.label), whole(own.routings), whole(len(own.results)), *_spread(own.validation)]
        for name in sets:
            cells += _spread(own.accuracy(name))
        seconds = sum(result.seconds_per_epoch for result in own.results) / len(own.results)
        rows.append((*cells, Cell(f"{seconds:.1f}", seconds)))
    caption = (
        "Accuracy in percent: mean, standard deviation and range over seeds; validation is the split that selects the "
        "checkpoint. Seconds are those of training alone, each on its run's own device."
    )
    return Table("Routing iterations", (*columns, "Seconds\nper epoch"), tuple(rows), caption)


def _spread(summary: SeedSummary | None) -> tuple[Cell, Cell, Cell]:
    if summary is None:
        return ABSENT, ABSENT, ABSENT
    mean = Cell(percent(summary.mean), 100 * summary.mean)
    if summary.sd is None:
        return mean, ABSENT, ABSENT
    ends = f"{percent(summary.minimum)} to {percent(summary.maximum)}"
    return mean, Cell(percent(summary.sd), 100 * summary.sd), Cell(ends, 100 * (summary.maximum - summary.minimum))


def claims_table(results: Results) -> Table | None:
    """What the largest sweep says about each claim; None where no runs differ in their iterations."""
    judged = judge_claims(sweep_points(results))
    if not judged:
        return None
    caption = (
        "p values are two-sided and corrected after Holm over all tests of the table. A claim that there is no effect "
        "can only be contradicted: where it is not, the interval says how large an effect may have been missed."
    )
    columns = ("Claim", "Set", "Seeds", "Test", "Effect", "p (Holm)", "Verdict", "What these data say")
    return Table("Claims of earlier work", columns, tuple(map(_claim, judged)), caption)


def _claim(judged: Judgement) -> tuple[Cell, ...]:
    effect, p = ABSENT, ABSENT
    if judged.effect is not None and judged.p is not None:
        text = f"{judged.effect:+.2f} {judged.unit}\n[{judged.low:+.2f}, {judged.high:+.2f}]"
        effect, p = Cell(text, judged.effect), Cell(f"{judged.p:.3f}", judged.p)
    return (
        Cell(f"{judged.claim.statement}\n({judged.claim.source})"),
        Cell(judged.set or "training"),
        whole(len(judged.seeds)),
        Cell(judged.test),
        effect,
        p,
        Cell(judged.verdict),
        Cell(judged.sentence),
    )


def routing_figure(results: Results, path: Path) -> Drawing | None:
    """Accuracy against the number of routing iterations, on validation and every set, with the range over seeds."""
    sweeps = results.sweeps
    if not sweeps:
        return None
    groups = [own for sweep in sweeps for own in sweep]
    sets = [name for name in results.sets if any(own.records(name) for own in groups)]
    iterations = sorted({own.routings or 0 for own in groups})
    figure, grid = panels(1 + len(sets), 3.2, 2.9, 0.4)
    rows: list[tuple[Any, ...]] = []
    for axes, name in zip(grid, ["validation", *sets], strict=True):
        for number, sweep in enumerate(sweeps):
            rows += _sweep_line(axes, sweep, name, iterations, number)
        dress(axes, name, "routing iterations", "accuracy %")
        axes.set_xticks(range(len(iterations)), [str(value) for value in iterations])
        axes.margins(x=0.1)
    if len(sweeps) > 1:
        firsts = [sweep[0] for sweep in sweeps]
        labels = [own.label for own in firsts]
        legend(figure, [own.label if labels.count(own.label) == 1 else own.name for own in firsts])
    seeds = sorted({len(own.results) for own in groups})
    caption = (
        f"Mean over seeds ({' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} per point); bars span the lowest to "
        f"the highest seed. {'; '.join(described(name, groups) for name in sets)}. Validation selects the "
        f"checkpoint.{beginning(axes.get_ylim()[0] for axes in grid)}"
    )
    header = ("model", "routings", "set", "seeds", "mean", "sd", "minimum", "maximum")
    return save_drawing(figure, path, "Accuracy against routing iterations", caption, header, rows)


def _sweep_line(
    axes: Axes, sweep: Sequence[Group], name: str, iterations: Sequence[int], number: int
) -> list[tuple[Any, ...]]:
    """Draw a sweep on one set, or on validation; its points for the CSV."""
    found = [(own, own.validation if name == "validation" else own.accuracy(name)) for own in sweep]
    points = [(own, summary) for own, summary in found if summary is not None]
    x = [iterations.index(own.routings or 0) for own, _ in points]
    y = [100 * s.mean for _, s in points]
    down = [100 * (s.mean - s.minimum) for _, s in points]
    up = [100 * (s.maximum - s.mean) for _, s in points]
    axes.errorbar(x, y, yerr=[down, up], capsize=3, elinewidth=1, **line_look(number))
    return [(own.name, own.routings, name, s.n, s.mean, s.sd, s.minimum, s.maximum) for own, s in points]
