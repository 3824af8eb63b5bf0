"""Ablation: routing × reconstruction on centred MNIST, in the shape of CapsNet-Keras's table."""

from pathlib import Path

from affbench.analysis.published import ABLATION
from affbench.analysis.results import Group, Results
from affbench.base.statistics import seed_summary
from affbench.report.sections import Section
from affbench.report.table import ABSENT, Cell, Table, counted, described, percent, whole


def section(results: Results, folder: Path) -> Section | None:
    """Test error of CapsNets by routing iterations, with and without reconstruction; None without two such cells."""
    ours: dict[tuple[int, bool], list[Group]] = {}
    for own in results.groups:
        if own.config.model.name == "capsnet" and own.config.data.train_set == "mnist" and own.records("mnist"):
            on = bool(own.config.model.options.get("reconstruction", True))
            ours.setdefault((own.routings or 3, on), []).append(own)
    if len(ours.keys() & ABLATION.keys()) < 2:
        return None
    rows = []
    for (routings, on), groups in sorted(ours.items(), key=lambda item: item[0]):
        errors = []
        for own in groups:
            records = own.records("mnist")
            found = seed_summary([1 - record.accuracy for record in records])
            spread = "" if found.sd is None else f" ({percent(found.sd)})"
            errors.append(Cell(f"{percent(found.mean)}{spread}, {counted(len(records), 'seed')}", 100 * found.mean))
        here = Cell("\n".join(cell.text for cell in errors), errors[0].sort)
        published = ABLATION.get((routings, on))
        theirs = (ABSENT, ABSENT) if published is None else (Cell(f"{e:.2f} ({sd})", e) for e, sd in published)
        rows.append((Cell("CapsNet"), whole(routings), Cell("yes" if on else "no"), here, *theirs))
    columns = ("Method", "Routing", "Reconstruction", "Here", "Sabour et al.", "CapsNet-Keras")
    shown = [own for groups in ours.values() for own in groups]
    caption = (
        f"Test error in percent on {described('mnist', shown)}: mean (standard deviation) over seeds here and over 3 "
        "trials elsewhere; here the checkpoint is selected on validation digits. Sabour et al.: the paper's, as quoted "
        "by CapsNet-Keras; CapsNet-Keras: stated by the project, which selects on the test set."
    )
    return Section("Ablation", (Table("Ablation: routing and reconstruction", columns, tuple(rows), caption),))
