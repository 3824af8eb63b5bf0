"""Routing iterations: accuracy over their number, and what the sweep says about claims of earlier work."""

from pathlib import Path
from typing import Any

import numpy as np

from affbench.analysis.claims import judge_claims, sweep_runs
from affbench.analysis.results import Results
from affbench.report.drawing import Drawing, Line, draw_lines, save_drawing
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
    groups = [own for sweep in results.sweeps for own in sweep]
    sets = [name for name in results.sets if any(own.records(name) for own in groups)]
    iterations = sorted({own.routings or 0 for own in groups})
    firsts = [sweep[0] for sweep in results.sweeps]
    labels = [own.label for own in firsts]
    lines, rows = list[Line](), list[tuple[Any, ...]]()
    for first, sweep in zip(firsts, results.sweeps, strict=True):
        name = first.label if labels.count(first.label) == 1 else first.name
        for panel in ("validation", *sets):
            summaries = [(own, own.validation if panel == "validation" else own.accuracy(panel)) for own in sweep]
            known = [(own, found) for own, found in summaries if found is not None]
            ends = 100 * np.array([(s.mean, s.minimum, s.maximum) for _, s in known]).reshape(-1, 3)
            points = np.column_stack([[iterations.index(own.routings or 0) for own, _ in known], ends])
            lines.append(Line(panel, "routing iterations", name, first.kept, first.look, points))
            rows += [(own.name, own.routings, panel, s.n, s.mean, s.sd, s.minimum, s.maximum) for own, s in known]
    figure, places, said = draw_lines(lines, "accuracy %")
    for axes in (axes for column in places.values() for axes in column):
        axes.set_xticks(range(len(iterations)), [str(value) for value in iterations])
    seeds = sorted({len(own.results) for own in groups})
    caption = (
        f"Mean over seeds ({' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} per point); bands span the lowest to "
        f"the highest seed. {'; '.join(described(name, groups) for name in sets)}. Validation selects the "
        f"checkpoint.{said}"
    )
    header = ("model", "routings", "set", "seeds", "mean", "sd", "minimum", "maximum")
    return save_drawing(figure, path, "Accuracy against routing iterations", caption, header, rows)
