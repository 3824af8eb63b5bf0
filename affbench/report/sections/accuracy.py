"""Results: accuracy of every configuration on every set, with its interval and its single seeds."""

import itertools
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from affbench.analysis.results import Results
from affbench.report.drawing import INK, Drawing, beginning, dress, legend, line_look, literal, new_figure, save_drawing
from affbench.report.sections import Section
from affbench.report.table import INTERVALS, Cell, Table, accuracy_table, described, whole


def section(results: Results, folder: Path) -> Section:
    """The summary, and the same as a figure."""
    figure = accuracy_figure(results, folder / "accuracy.png")
    return Section("Results", (summarise(results),), () if figure is None else (figure,))


def summarise(results: Results, *, title: str = "Summary", note: str = "") -> Table:
    """One row per model configuration, one column per set: accuracy, interval, n and seeds; perhaps no row at all."""
    lines = [
        (own, (Cell(own.name), whole(own.parameters), whole(own.routings), whole(len(own.results))))
        for own in results.groups
    ]
    caption = f"Validation accuracy selects the checkpoint; test sets are only evaluated. {INTERVALS}"
    for name in results.sets:
        if len({(record.set_key, record.n) for own in results.groups for record in own.records(name)}) > 1:
            caption += f" Not all models were tested on the same images of {name}: compare that column with care."
    for record in (record for own in results.groups for name in results.sets for record in own.records(name)):
        if record.warning:
            caption += f"\nWarning, {record.run} on {record.set}: {record.warning}"
    heads = ("Model", "Parameters", "Routings", "Seeds")
    return accuracy_table(title, heads, lines, results, f"{caption}\n{note}".strip())


def accuracy_figure(results: Results, path: Path) -> Drawing | None:
    """A line for the interval of every configuration on every set, a row a network; None where nothing was tested."""
    sets = results.sets
    groups = [own for own in results.groups if any(own.records(name) for name in sets)]
    if not groups:
        return None
    networks = list(dict.fromkeys(own.network for own in groups))
    kept = {own.kept: own.look[1] for own in sorted(groups, key=lambda own: own.look[1])}
    figure = new_figure(2.4 + min(2.7 * len(sets), 8.1), 1.1 + (0.22 + 0.16 * len(kept)) * len(networks))
    panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    rows = []
    for own, (axes, name) in itertools.product(groups, zip(panels, sets, strict=True)):
        summary, ends, records = own.accuracy(name), own.interval(name), own.records(name)
        if summary is None or ends is None:
            continue
        spread = (summary.sd, summary.minimum, summary.maximum)
        rows.append((own.name, name, records[0].split, records[0].n, summary.n, summary.mean, *ends, *spread))
        look, percents = line_look(*own.look), [100 * record.accuracy for record in records]
        height = networks.index(own.network) + 0.5 * (list(kept).index(own.kept) + 0.5) / len(kept) - 0.25
        axes.plot([100 * end for end in ends], [height] * 2, **look | {"marker": None, "linewidth": 1.8})
        axes.plot(100 * summary.mean, height, **look | {"markersize": 6})
        if len(percents) > 1:
            axes.plot(percents, [height] * len(percents), "|", color=look["color"], markersize=7)
    for axes, name in zip(panels, sets, strict=True):
        dress(axes, name, "accuracy %")
        axes.margins(x=0.08, y=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    panels[0].set_yticks(range(len(networks)), [literal(name, 40) for name in networks])
    panels[0].set_ylim(len(networks) - 0.4, -0.6)
    if len(kept) > 1:
        legend(figure, {name: line_look(0, ending) | {"color": INK} for name, ending in kept.items()})
    caption = (
        f"{'; '.join(described(name, groups) for name in sets)}. Lines are 95% intervals: over test images for "
        "one seed (originals resampled where the set holds several versions of each), Student's t over seeds for "
        "several, whose single values are the small ticks."
        f"{beginning(axes.get_xlim()[0] for axes in panels)}"
    )
    header = ("model", "set", "split", "n", "seeds", "accuracy", "low", "high", "sd", "minimum", "maximum")
    return save_drawing(figure, path, "Accuracy per set", caption, header, rows)
