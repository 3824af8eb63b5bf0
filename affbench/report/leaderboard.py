"""The table of a leaderboard, for the terminal."""

from __future__ import annotations

from affbench.analysis.ranking import Leaderboard
from affbench.report.table import ABSENT, Cell, Table, interval, percent, whole


def leaderboard_table(board: Leaderboard) -> Table:
    """A leaderboard as a table, the published results without rank below our own."""
    columns = ("Rank", "Model", "Run", "Parameters", "n", "Accuracy %", "95% interval", "Origin")
    rows = [
        (
            whole(row.rank),
            Cell(row.model if row.routings is None else f"{row.model}, routing {row.routings}"),
            Cell(row.run),
            whole(row.parameters),
            whole(row.n),
            Cell(percent(row.accuracy), 100 * row.accuracy),
            Cell(interval((row.low, row.high))),
            Cell(row.origin),
        )
        for row in board.rows
    ]
    rows += [
        (ABSENT, Cell(p.method), ABSENT, Cell(p.parameters or "–"), ABSENT, Cell(f"{p.value:g}", p.value), ABSENT,
         Cell(f"{p.source}, on {p.set}, trained on {p.trained}; {p.status}"))
        for p in sorted(board.published, key=lambda other: -other.value)
    ]  # fmt: skip
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
