"""Routing iterations: accuracy over their number, and what the sweep says about claims of earlier work."""

from pathlib import Path
from typing import Any

import numpy as np

from affbench.analysis.claims import judge_claims, sweep_runs
from affbench.analysis.results import Results
from affbench.report.drawing import Drawing, beginning, dress, legend, line_look, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import ABSENT, INTERVALS, Cell, Table, accuracy_table, described, whole


def section(results: Results, folder: Path) -> Section | None:
    """Table, figure and claims of the sweeps over routing iterations; None where nothing was swept."""
    swept = results.whole
    if not swept.sweeps:
        return None
    figure = routing_figure(swept, folder / "routing-sweep.png")
    return Section("Routing iterations", (sweep_table(swept), claims_table(swept)), (figure,))


def sweep_table(results: Results) -> Table:
    """Routing iterations × seeds on validation and every set, and their cost."""
    lines = []
    for own in (own for sweep in results.sweeps for own in sweep):
        seconds = sum(result.run.seconds_per_epoch for result in own.results) / len(own.results)
        cells = (Cell(own.label), whole(own.routings), whole(len(own.results)), Cell(f"{seconds:.1f}", seconds))
        lines.append((own, cells))
    caption = f"Seconds are those of training alone, each on its run's own device. {INTERVALS}"
    heads = ("Model", "Routings", "Seeds", "Seconds\nper epoch")
    return accuracy_table("Routing iterations", heads, lines, results, caption)


def claims_table(results: Results) -> Table:
    """What the largest sweep says about each claim."""
    rows = []
    for own in judge_claims(sweep_runs(results)):
        effect, p = ABSENT, ABSENT
        if (found := own.effect) is not None and own.p is not None:
            text = f"{found.mean:+.2f} {own.unit}\n[{found.low:+.2f}, {found.high:+.2f}]"
            effect, p = Cell(text, found.mean), Cell(f"{own.p:.3f}", own.p)
        claim, tested = Cell(f"{own.claim.statement}\n({own.claim.source})"), Cell(own.set or "training")
        said = (Cell(own.verdict), Cell(own.sentence))
        rows.append((claim, tested, whole(len(own.seeds)), Cell(own.test), effect, p, *said))
    caption = (
        "p values are two-sided and corrected after Holm over all tests of the table. A claim that there is no effect "
        "can only be contradicted: where it is not, the interval says how large an effect may have been missed."
    )
    columns = ("Claim", "Set", "Seeds", "Test", "Effect", "p (Holm)", "Verdict", "What these data say")
    return Table("Claims of earlier work", columns, tuple(rows), caption)


def routing_figure(results: Results, path: Path) -> Drawing:
    """Accuracy against the number of routing iterations, on validation and every set, with the range over seeds."""
    sweeps = results.sweeps
    groups = [own for sweep in sweeps for own in sweep]
    sets = [name for name in results.sets if any(own.records(name) for own in groups)]
    iterations = sorted({own.routings or 0 for own in groups})
    figure, grid = panels(1 + len(sets), 3.2, 2.9, 0.4)
    rows: list[tuple[Any, ...]] = []
    for axes, name in zip(grid, ["validation", *sets], strict=True):
        for number, sweep in enumerate(sweeps):
            summaries = [(own, own.validation if name == "validation" else own.accuracy(name)) for own in sweep]
            points = [(own.name, own.routings or 0, found) for own, found in summaries if found is not None]
            ends = [(found.minimum, found.mean, found.maximum) for _, _, found in points]
            low, mean, high = 100 * np.array(ends).reshape(-1, 3).T
            x, reach = [iterations.index(routings) for _, routings, _ in points], (mean - low, high - mean)
            axes.errorbar(x, mean, yerr=reach, capsize=3, elinewidth=1, **line_look(number))
            rows += [(*own, name, s.n, s.mean, s.sd, s.minimum, s.maximum) for *own, s in points]
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
