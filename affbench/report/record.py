"""The tables of a single evaluation, for the terminal."""

from __future__ import annotations

from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.table import Cell, Table, interval, percent, whole
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
    overall = [("all images", _cells(record, record.accuracy_ci95))]
    if record.accuracy_ci95_clustered is not None:
        overall.append(("all images, bootstrap over originals", _cells(record, record.accuracy_ci95_clustered)))
    overall += [(f"class {row.label}", _cells(row, row.ci95)) for row in record.per_class]
    columns = ("n", "accuracy %", "95% interval")
    rows = tuple((Cell(name), *cells) for name, cells in overall)
    tables = [Table(f"{record.run} on {record.set}", ("", *columns), rows, caption)]
    if record.by_transformation:
        rows = tuple(
            (
                Cell(factor.replace("_", " ")),
                Cell(f"{row.low:.3g} to {row.high:.3g} {TRANSFORM_UNITS[factor]}"),
                *_cells(row, row.ci95),
            )
            for factor, bins in record.by_transformation.items()
            for row in bins
        )
        tables.append(Table("By transformation", ("factor", "from – to", *columns), rows, caption))
    return tables


def _cells(share: Share | EvaluationRecord, ends: tuple[float, float]) -> tuple[Cell, ...]:
    return whole(share.n), Cell(percent(share.accuracy), share.accuracy), Cell(interval(ends))
