"""The table of claims of earlier work about routing and what a sweep's data say, and that of coupling entropy."""

from __future__ import annotations

from collections.abc import Sequence

from affbench.analysis.capsules import CouplingEntropy
from affbench.analysis.claims import Claim, judge_claims, sweep_points
from affbench.analysis.results import Results
from affbench.report.table import Cell, Table


def claims_table(results: Results, *, note: str = "") -> Table | None:
    """What the runs of a routing sweep say about each claim; None where no runs differ in their iterations.

    Parameters
    ----------
    results
        Finished runs of any kind; those of the largest sweep among them count.
    note
        As for `affbench.report.table.Table`.
    """
    claims = judge_claims(sweep_points(results))
    if not claims:
        return None
    caption = (
        "p values are two-sided and corrected after Holm over all tests of the table. A claim that there is no effect "
        "can only be contradicted: where it is not, the interval says how large an effect may have been missed."
    )
    columns = ("Claim", "Set", "Seeds", "Test", "Effect", "p (Holm)", "Verdict", "What these data say")
    return Table("Claims of earlier work", columns, tuple(map(_row, claims)), caption, note)


def _row(claim: Claim) -> tuple[Cell, ...]:
    effect = Cell("–")
    if claim.effect is not None and claim.low is not None and claim.high is not None:
        text = f"{claim.effect:+.2f} {claim.unit}\n[{claim.low:+.2f}, {claim.high:+.2f}]"
        effect = Cell(text, claim.effect)
    return (
        Cell(f"{claim.statement}\n({claim.source})"),
        Cell(claim.set or "training"),
        Cell(str(len(claim.seeds)), len(claim.seeds)),
        Cell(claim.test),
        effect,
        Cell("–") if claim.p_holm is None else Cell(f"{claim.p_holm:.3f}", claim.p_holm),
        Cell(claim.verdict),
        Cell(claim.sentence),
    )


def entropy_table(found: Sequence[tuple[str, CouplingEntropy]], set_name: str, *, note: str = "") -> Table:
    """Coupling entropy of named runs on one set, a row each."""
    columns = ("Run", "Routings", "Images", "Input capsules", "Entropy, nats", "of uniform %", "sd over images %")
    rows = tuple(
        (
            Cell(name),
            Cell(str(own.iterations), own.iterations),
            Cell(f"{own.images:,}", own.images),
            Cell(f"{own.capsules:,}", own.capsules),
            Cell(f"{own.nats:.4f}", own.nats),
            Cell(f"{100 * own.relative:.2f}", own.relative),
            Cell(f"{100 * own.sd:.2f}", own.sd),
        )
        for name, own in found
    )
    caption = (
        f"Mean entropy of the coupling coefficients of an input capsule after the last iteration, on {set_name}. 100% "
        "is uniform coupling, as with one iteration; 0% would be every input capsule sending all to one class."
    )
    return Table("Coupling entropy", columns, rows, caption, note)
