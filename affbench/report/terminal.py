"""The tables of a leaderboard and of a single evaluation, for the terminal."""

from affbench.analysis.ranking import Leaderboard
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.table import ABSENT, Cell, Table, interval, percent, whole
from affbench.run.folder import EvaluationRecord, Share


def leaderboard_table(board: Leaderboard) -> Table:
    """A leaderboard as a table, the published results without rank below our own."""
    columns = ("Rank", "Model", "Run", "Parameters", "n", "Accuracy %", "95% interval", "Origin")
    rows = []
    for row in board.rows:
        model = Cell(row.model if row.routings is None else f"{row.model}, routing {row.routings}")
        counts = (whole(row.parameters), whole(row.n))
        accuracy = (Cell(percent(row.accuracy), 100 * row.accuracy), Cell(interval((row.low, row.high))))
        rows.append((whole(row.rank), model, Cell(row.run), *counts, *accuracy, Cell(row.origin)))
    for other in sorted(board.published, key=lambda published: -published.value):
        origin = Cell(f"{other.source}, on {other.set}, trained on {other.trained}; {other.status}")
        accuracy = (Cell(f"{other.value:g}", other.value), ABSENT)
        rows.append((ABSENT, Cell(other.method), ABSENT, Cell(other.parameters or "–"), ABSENT, *accuracy, origin))
    caption = (
        "Rank: 1 + the number of runs whose whole 95% interval lies above; equal ranks are ties within the noise. "
        "Intervals are over test images of one run (originals resampled where a set holds several versions of each "
        "digit) and leave out the choice of seed."
    )
    if board.published:
        caption += " Published results are on the sets named in them, without rank."
    if len({row.n for row in board.rows}) > 1:
        caption += " Not all were tested on as many images: compare rows of one n."
    notes = [caption, *(f"Warning, {row.run}: {row.warning}" for row in board.rows if row.warning), *board.left_out]
    return Table(f"Leaderboard: {board.set}", columns, tuple(rows), "\n".join(notes))


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
