"""The figures of a report, each a PNG with its numbers as CSV beside it.

Drawn through matplotlib's objects, never its global state; the colours are told apart with any colour vision, and every
line also has a marker and a dash of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from affbench.analysis.results import Group, Results
from affbench.base.statistics import SeedSummary, seed_summary
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.drawing import COLOURS, INK, MARKERS, Drawing, dress, literal, new_figure, save_drawing
from affbench.run.folder import BinShare

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_MOST_ROWS, _MOST_CURVES, _MOST_MATRICES = 40, 14, 6


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dash: Any


def _styles(groups: Sequence[Group]) -> dict[str, _Style]:
    return {
        own.name: _Style(
            COLOURS[number % len(COLOURS)],
            MARKERS[number % len(MARKERS)],
            _DASHES[number // len(COLOURS) % len(_DASHES)],
        )
        for number, own in enumerate(groups)
    }


def _legend(figure: Figure, styles: dict[str, _Style], hidden: int = 0) -> None:
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.dash, markersize=4.5, linewidth=1.5)
        for style in styles.values()
    ]
    texts = [literal(name, 48) for name in styles]
    if hidden:
        handles.append(Line2D([], [], linestyle="none"))
        texts.append(f"and {hidden} more, see the CSV")
    longest = max(map(len, texts))
    columns = max(1, min(len(texts), 4, 110 // (longest + 6)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def training_curves(results: Results, path: Path) -> Drawing | None:
    """Loss, training accuracy and validation accuracy by epoch; one line per run, one colour per configuration."""
    groups = results.groups
    if not groups:
        return None
    shown = groups[:_MOST_CURVES]
    styles = _styles(shown)
    figure = new_figure(9.5, 3.4 + 0.22 * math.ceil(len(shown) / 3))
    loss, train, validation = figure.subplots(1, 3)
    most = max(len(result.history) for result in results.results)
    for own in shown:
        style = styles[own.name]
        for result in own.results:
            epochs = [row.epoch for row in result.history]
            look: dict[str, Any] = {
                "color": style.colour,
                "linestyle": style.dash,
                "linewidth": 1.3,
                "alpha": 0.9 if len(own.results) == 1 else 0.65,
                "marker": style.marker if most <= 30 else None,
                "markersize": 3,
            }
            loss.plot(epochs, [row.train_loss for row in result.history], **look)
            known = [math.nan if row.train_accuracy is None else 100 * row.train_accuracy for row in result.history]
            train.plot(epochs, known, **look)
            validation.plot(epochs, [100 * row.validation_accuracy for row in result.history], **look)
            best = result.selected
            validation.plot(
                best.epoch, 100 * best.validation_accuracy, marker="o", markersize=8, markerfacecolor="none",
                markeredgecolor=style.colour, markeredgewidth=1,
            )  # fmt: skip
    positive = all(row.train_loss > 0 for result in results.results for row in result.history)
    loss.set_yscale("log" if positive else "linear")
    for axes, title, y in (
        (loss, "Training loss", ""),
        (train, "Training accuracy", "%"),
        (validation, "Validation", "%"),
    ):
        dress(axes, title, "epoch", y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _legend(figure, styles, len(groups) - len(shown))
    caption = (
        f"One line per run ({len(results.results)} in all). Losses of different models are different functions: "
        "compare their course, not their height. Circles mark the checkpoint that was kept, the one with the highest "
        "validation accuracy. Training accuracy is the mean over an epoch, while the weights changed."
    )
    header = ("model", "run", "seed", "epoch", "train_loss", "train_accuracy", "validation_accuracy")
    rows = (
        (own.name, result.name, result.config.training.seed, row.epoch, row.train_loss, row.train_accuracy,
         row.validation_accuracy)
        for own in groups for result in own.results for row in result.history
    )  # fmt: skip
    return save_drawing(figure, path, "Training", caption, header, rows)


def accuracy_per_set(results: Results, path: Path) -> Drawing | None:
    """Accuracy of every configuration on every set, with its 95% interval and its single seeds."""
    groups = [own for own in results.groups if any(own.records(name) for name in results.sets)]
    if not groups:
        return None
    shown, sets = groups[:_MOST_ROWS], results.sets
    styles = _styles(shown)
    figure = new_figure(2.6 + min(2.9 * len(sets), 8.5), 1.2 + 0.36 * len(shown))
    panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, sets, strict=True):
        for height, own in enumerate(shown):
            summary, interval = own.accuracy(name), own.interval(name)
            if summary is None or interval is None:
                continue
            style = styles[own.name]
            axes.plot([100 * end for end in interval], [height] * 2, color=style.colour, linewidth=2.2, alpha=0.75)
            if summary.n > 1:
                singles = [100 * record.accuracy for record in own.records(name)]
                axes.plot(singles, [height + 0.22] * len(singles), "|", color=style.colour, markersize=5)
            axes.plot(100 * summary.mean, height, style.marker, color=style.colour, markersize=6)
        dress(axes, name, "accuracy %")
        axes.margins(x=0.08, y=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    panels[0].set_yticks(range(len(shown)), [literal(own.name, 40) for own in shown])
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    sizes = "; ".join(_size(name, groups) for name in sets)
    hidden = f" The first {len(shown)} of {len(groups)} configurations are drawn." if len(shown) < len(groups) else ""
    caption = (
        f"{sizes}. Lines are 95% intervals: over test images for one seed (originals resampled where the set holds "
        "several versions of each), Student's t over seeds for several, whose single values are the small "
        f"ticks.{_beginning(axes.get_xlim()[0] for axes in panels)}{hidden}"
    )
    header = ("model", "set", "split", "n", "seeds", "accuracy", "low", "high", "sd", "minimum", "maximum")
    rows = []
    for own, name in itertools.product(groups, sets):
        summary, interval, records = own.accuracy(name), own.interval(name), own.records(name)
        if summary is not None and interval is not None:
            rows.append(
                (own.name, name, records[0].split, records[0].n, summary.n, summary.mean, *interval, summary.sd,
                 summary.minimum, summary.maximum)
            )  # fmt: skip
    return save_drawing(figure, path, "Accuracy per set", caption, header, rows)


def _beginning(lows: Iterable[float]) -> str:
    """What a caption has to say of axes that begin at these values."""
    above = [low > 0 for low in lows]
    return " The axes do not begin at 0." if all(above) else " Not all axes begin at 0." if any(above) else ""


def _size(name: str, groups: Sequence[Group]) -> str:
    records = [record for own in groups for record in own.records(name)]
    counts = sorted({record.n for record in records})
    return f"{name}: {records[0].split} split, n = {' / '.join(f'{n:,}' for n in counts)}"


def routing_sweep(results: Results, sweeps: Sequence[Sequence[Group]], path: Path) -> Drawing | None:
    """Accuracy against the number of routing iterations, on validation and every set, with the range over seeds."""
    if not sweeps:
        return None
    groups = [own for sweep in sweeps for own in sweep]
    names = [name for name in results.sets if any(own.records(name) for own in groups)]
    iterations = sorted({own.routings or 0 for own in groups})
    panels_shown = ["validation", *names]
    columns = min(3, len(panels_shown))
    lines = math.ceil(len(panels_shown) / columns)
    figure = new_figure(3.2 * columns, 2.9 * lines + 0.4)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    heads = [sweep[0].label for sweep in sweeps]
    titles = [head if heads.count(head) == 1 else sweep[0].name for head, sweep in zip(heads, sweeps, strict=True)]
    styles = {title: list(_styles(groups).values())[number] for number, title in enumerate(titles)}
    rows = []
    for axes, name in zip(panels, panels_shown, strict=False):
        for title, sweep in zip(titles, sweeps, strict=True):
            found = [(own, s) for own in sweep if (s := _summary(own, name)) is not None]
            x = [iterations.index(own.routings or 0) for own, _ in found]
            y = [100 * s.mean for _, s in found]
            down = [100 * (s.mean - s.minimum) for _, s in found]
            up = [100 * (s.maximum - s.mean) for _, s in found]
            style = styles[title]
            axes.errorbar(
                x, y, yerr=[down, up], color=style.colour, marker=style.marker, linestyle=style.dash, markersize=5,
                linewidth=1.4, capsize=3, elinewidth=1,
            )  # fmt: skip
            rows += [(own.name, own.routings, name, s.n, s.mean, s.sd, s.minimum, s.maximum) for own, s in found]
        dress(axes, name, "routing iterations", "accuracy %")
        axes.set_xticks(range(len(iterations)), [str(value) for value in iterations])
        axes.margins(x=0.1)
    for axes in panels[len(panels_shown) :]:
        axes.set_visible(False)
    if len(sweeps) > 1:
        _legend(figure, styles)
    seeds = sorted({len(own.results) for own in groups})
    caption = (
        f"Mean over seeds ({' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} per point); bars span the lowest to "
        f"the highest seed. {'; '.join(_size(name, groups) for name in names)}. Validation selects the "
        f"checkpoint.{_beginning(axes.get_ylim()[0] for axes in panels[: len(panels_shown)])}"
    )
    header = ("model", "routings", "set", "seeds", "mean", "sd", "minimum", "maximum")
    return save_drawing(figure, path, "Accuracy against routing iterations", caption, header, rows)


def _summary(own: Group, name: str) -> SeedSummary | None:
    return own.validation if name == "validation" else own.accuracy(name)


def by_transformation(results: Results, name: str, path: Path) -> Drawing | None:
    """Accuracy on one set as a curve over each factor of the transformation; None for a set without."""
    groups = [own for own in results.groups if any(record.by_transformation for record in own.records(name))]
    if not groups:
        return None
    shown = groups[:_MOST_CURVES]
    styles = _styles(shown)
    factors = list(dict.fromkeys(f for own in groups for r in own.records(name) for f in r.by_transformation or {}))
    columns = min(3, len(factors))
    lines = math.ceil(len(factors) / columns)
    figure = new_figure(3.2 * columns, 2.5 * lines + 0.5 + 0.2 * math.ceil(len(shown) / 3))
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    rows: list[tuple[Any, ...]] = []
    for axes, factor in zip(panels, factors, strict=False):
        for own in groups:
            curve = _curve(own, name, factor)
            rows += [(own.name, factor, *point) for point in curve]
            if own.name in styles and curve:
                style = styles[own.name]
                x = [(low + high) / 2 for low, high, *_ in curve]
                axes.plot(
                    x, [100 * point[4] for point in curve], color=style.colour, linestyle=style.dash, linewidth=1.4,
                    marker=style.marker, markersize=3.5,
                )  # fmt: skip
                axes.fill_between(
                    x, [100 * point[5] for point in curve], [100 * point[6] for point in curve], color=style.colour,
                    alpha=0.15, linewidth=0,
                )  # fmt: skip
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS.get(factor, ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy %", fontsize=9, color=INK)
    for axes in panels[len(factors) :]:
        axes.set_visible(False)
    _legend(figure, styles, len(groups) - len(shown))
    caption = (
        f"{_size(name, groups)}, in equal bins of each factor; the other factors vary freely. Bands: Wilson's 95% "
        "interval for one seed (images taken as independent), the range over seeds for several."
        f"{_beginning(axes.get_ylim()[0] for axes in panels)}"
    )
    header = ("model", "factor", "low", "high", "n", "seeds", "accuracy", "band_low", "band_high")
    return save_drawing(figure, path, f"Accuracy by transformation, {name}", caption, header, rows)


def _curve(own: Group, name: str, factor: str) -> list[tuple[float, float, int, int, float, float, float]]:
    """(low, high, n, seeds, mean accuracy, band low, band high) of every bin, by rising edges."""
    bins: dict[tuple[float, float], list[BinShare]] = {}
    for record in own.records(name):
        for share in (record.by_transformation or {}).get(factor, ()):
            bins.setdefault((share.low, share.high), []).append(share)
    points = []
    for (low, high), shares in sorted(bins.items()):
        summary = seed_summary([share.accuracy for share in shares])
        band = shares[0].ci95 if summary.n == 1 else (summary.minimum, summary.maximum)
        points.append((low, high, shares[0].n, summary.n, summary.mean, *band))
    return points


def confusion(results: Results, name: str, path: Path) -> Drawing | None:
    """Confusion matrices on one set, in percent of the true class, summed over seeds."""
    groups = [own for own in results.groups if own.records(name)]
    if not groups:
        return None
    shown = groups[:_MOST_MATRICES]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(3.3 * columns + 0.3, 3.4 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    summed = {own.name: _summed([record.confusion for record in own.records(name)]) for own in groups}
    for axes, own in zip(panels, shown, strict=False):
        counts = summed[own.name]
        shares = [[100 * count / max(1, sum(row)) for count in row] for row in counts]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, line in enumerate(shares):
            for column, value in enumerate(line):
                if value >= 0.5:
                    colour = "white" if value > 55 else INK
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        dress(axes, own.name, "predicted", "true")
        axes.set_title(literal(own.name, 36), fontsize=9, color=INK, loc="left")
        axes.grid(visible=False)
        axes.set_xticks(range(len(shares)))
        axes.set_yticks(range(len(shares)))
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    hidden = f" The first {len(shown)} of {len(groups)} configurations are drawn." if len(shown) < len(groups) else ""
    caption = (
        f"{_size(name, groups)}, summed over seeds. Percent of each true class; shares below half a percent are left "
        f"blank.{hidden}"
    )
    rows = [
        (own.name, len(own.records(name)), true, predicted, count)
        for own in groups
        for true, row in enumerate(summed[own.name])
        for predicted, count in enumerate(row)
    ]
    return save_drawing(
        figure, path, f"Confusion, {name}", caption, ("model", "seeds", "true", "predicted", "images"), rows
    )


def _summed(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
