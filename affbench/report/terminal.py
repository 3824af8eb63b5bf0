"""The tables of a leaderboard and of a single evaluation, for the terminal."""

from affbench.analysis.ranking import Leaderboard
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.table import Cell, Table, interval, percent, whole
from affbench.run.folder import EvaluationRecord, Share

_PROTOCOLS = {"translated": "T", "centred": "C", "unknown": "?"}


def leaderboard_tables(board: Leaderboard) -> list[Table]:
    """A leaderboard, and the published results beside it, narrow enough for a terminal of 80 columns."""
    rows = []
    for row in board.rows:
        name = row.run if row.stop_at is None else f"{row.run}\nmatched at {100 * row.stop_at:g}%"
        name += "\ntrained on centred digits" if row.protocol == "centred" else ""
        accuracy = Cell(f"{percent(row.accuracy)} {interval((row.low, row.high))}", 100 * row.accuracy)
        origin = Cell("ref." if row.origin == "reference" else row.origin)
        rows.append((whole(row.rank), Cell(name), whole(row.n), accuracy, origin))
    caption = (
        "Rank: 1 + the number of runs whose whole 95% interval lies above; equal ranks are ties within the noise. "
        "Intervals are over test images of one run (originals resampled where a set holds several versions of each "
        "digit) and leave out the choice of seed. ref.: committed to results/reference; "
        "elsewhere: trained elsewhere."
    )
    if len({row.n for row in board.rows}) > 1:
        caption += " Not all were tested on as many images: compare rows of one n."
    notes = [caption, *(f"Warning, {row.run}: {row.warning}" for row in board.rows if row.warning), *board.left_out]
    columns = ("Rank", "Run", "n", "Accuracy %", "From")
    tables = [Table(f"Leaderboard: {board.set}", columns, tuple(rows), "\n".join(notes))]
    published = sorted(board.published, key=lambda other: -other.value)
    if published:
        shown = tuple(
            (Cell(other.method), Cell(str(other.year), other.year), Cell(_PROTOCOLS[other.protocol]),
             Cell(f"{other.value:g}{'' if other.status.startswith('stated') else '*'}", other.value))
            for other in published
        )  # fmt: skip
        sets = ", ".join(dict.fromkeys(other.set for other in published))
        about = (
            f"On {sets}; without rank. T: trained on translated digits, C: on centred ones, ?: not known. "
            "*: quoted elsewhere, not checked at its source. Reports name each source."
        )
        tables.append(Table("Published results", ("Method", "Year", "Trained", "%"), shown, about))
    return tables


def evaluation_tables(record: EvaluationRecord) -> list[Table]:
    """The accuracy of a run on a set: overall, per class, and by transformation where there is one."""

    def cells(share: Share, ends: tuple[float, float]) -> tuple[Cell, ...]:
        return whole(share.n), Cell(percent(share.accuracy), share.accuracy), Cell(interval(ends))

    originals = "" if record.n_originals == record.n else f" ({record.n_originals:,} original digits)"
    caption = (
        f"{record.set}, {record.split} split, n = {record.n:,}{originals}; one run, seed {record.seed}; brackets: 95% "
        f"Wilson interval, images taken as independent; computed in {record.precision}; of equal scores the lowest "
        "class counts."
    )
    if record.warning:
        caption += f" Warning: {record.warning}"
    rows = [(Cell("all images"), *cells(record, record.ci95))]
    if record.ci95_clustered is not None:
        rows.append((Cell("all images, bootstrap over originals"), *cells(record, record.ci95_clustered)))
    rows += [(Cell(f"class {row.label}"), *cells(row, row.ci95)) for row in record.per_class]
    columns = ("n", "accuracy %", "95% interval")
    tables = [Table(f"{record.run} on {record.set}", ("", *columns), tuple(rows), caption)]
    if record.by_transformation:
        binned = [
            (Cell(factor.replace("_", " ")), Cell(f"{row.low:.3g} to {row.high:.3g} {TRANSFORM_UNITS[factor]}"),
             *cells(row, row.ci95))
            for factor, bins in record.by_transformation.items()
            for row in bins
        ]  # fmt: skip
        tables.append(Table("By transformation", ("factor", "from – to", *columns), tuple(binned), caption))
    return tables
