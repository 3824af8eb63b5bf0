"""The tables of a single evaluation, for the terminal."""

from __future__ import annotations

from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.table import Cell, Table, percent
from affbench.run.folder import EvaluationRecord, Share


def evaluation_tables(record: EvaluationRecord) -> list[Table]:
    """The accuracy of a run on a set: overall, per class, and by transformation where there is one."""
    origin = f"{record.set}, {record.split} split, n = {record.n:,}"
    if record.n_originals != record.n:
        origin += f" ({record.n_originals:,} original digits)"
    caption = f"{origin}; one run, seed {record.seed}; brackets: 95% Wilson interval, images taken as independent; "
    caption += f"computed in {record.precision}; of equal scores the lowest class counts."
    if record.warning:
        caption += f" Warning: {record.warning}"
    overall = [("all images", _cells(record))]
    if record.accuracy_ci95_clustered is not None:
        interval = Cell(_interval(record.accuracy_ci95_clustered))
        overall.append(("all images, bootstrap over originals", (Cell(f"{record.n:,}"), _share(record)[0], interval)))
    overall += [(f"class {row.label}", _cells(row)) for row in record.per_class]
    tables = [
        Table(
            f"{record.run} on {record.set}",
            ("", "n", "accuracy %", "95% interval"),
            tuple((Cell(name), *cells) for name, cells in overall),
            caption,
        )
    ]
    if record.by_transformation:
        rows = [
            (
                Cell(factor.replace("_", " ")),
                Cell(f"{row.low:.3g} to {row.high:.3g} {TRANSFORM_UNITS[factor]}"),
                *_cells(row),
            )
            for factor, rows in record.by_transformation.items()
            for row in rows
        ]
        columns = ("factor", "from – to", "n", "accuracy %", "95% interval")
        tables.append(Table("By transformation", columns, tuple(rows), caption))
    return tables


def _cells(share: Share | EvaluationRecord) -> tuple[Cell, Cell, Cell]:
    return (Cell(f"{share.n:,}", share.n), *_share(share))


def _share(share: Share | EvaluationRecord) -> tuple[Cell, Cell]:
    interval = share.accuracy_ci95 if isinstance(share, EvaluationRecord) else share.ci95
    return Cell(percent(share.accuracy), share.accuracy), Cell(_interval(interval))


def _interval(interval: tuple[float, float]) -> str:
    return f"[{percent(interval[0])}, {percent(interval[1])}]"
