"""The commands that say what there is: models and sets; and the one that takes a run away."""

from dataclasses import asdict
from typing import Annotated

import typer

from affbench.cli.options import known
from affbench.cli.session import Session, command


@command
def models(
    session: Session,
    name: Annotated[
        str | None, typer.Argument(help="Show the options of this one.", autocompletion=known("models"))
    ] = None,
) -> None:
    """The networks that affbench has, or the options of one: type, default, meaning."""
    from affbench.models.card import model_card
    from affbench.models.registry import model_names
    from affbench.report.table import Cell, Table, whole

    cards = [model_card(own) for own in ([name] if name else model_names())]
    if name:
        (card,) = cards
        rows = [(Cell(f"{own.name}\n{own.type}"), Cell(str(own.default)), Cell(own.meaning)) for own in card.options]
        about = "\n".join(filter(None, (card.summary, f"{card.parameters:,} parameters on 40×40 images.", card.paper)))
        table = Table(card.name, ("Option (-o)", "Default", "What it is"), tuple(rows), about)
    else:
        rows = [(Cell(own.name), whole(own.parameters), Cell(own.summary)) for own in cards]
        more = "Parameters with default options, on 40×40 images. 'affbench models NAME' shows options and paper."
        table = Table("Models", ("Model", "Parameters", "What it is"), tuple(rows), more)
    session.show(table)
    session.document({"models": [asdict(card) for card in cards]})


@command
def sets(session: Session) -> None:
    """The sets of images: how many, whether they are here, and how to get them."""
    from affbench.data.sets import FAMILIES, SPLITS, SetPart
    from affbench.report.table import Cell, Table

    rows, listed = [], []
    for family in FAMILIES.values():
        there = family.embedded or family.is_there(session.workspace.data)
        for spec in family.sets:
            splits = [spec.split] if spec.split else [split for split in SPLITS if family.sizes.get(split)] or ["test"]
            parts = [SetPart(spec, split) for split in splits]
            ready = all(part.is_ready(session.workspace.data) for part in parts)
            state = "here" if ready else f"affbench fetch {parts[0].fetched_as}"
            if there and not ready and not family.write:
                state = "made when it is used"
            sizes = {part.split: part.made_size for part in parts}
            listed.append({"set": spec.name, "form": spec.form, "canvas": spec.canvas, "images": sizes, "state": state})
            counts = "\n".join(f"{size:,} {split}" if size else split for split, size in sizes.items())
            rows.append((Cell(spec.name), Cell(f"{spec.form}\n{spec.canvas}×{spec.canvas}"), Cell(counts), Cell(state)))
    caption = (
        "Original digits, padded ones in the middle of the canvas, translated ones anywhere on it, affine ones under "
        "transformations drawn as affNIST's; official sets are read from their own files."
    )
    session.show(Table("Sets", ("Set", "What", "Images", "Here"), tuple(rows), caption))
    session.document({"sets": listed})


@command
def rm(
    session: Session,
    runs: Annotated[
        list[str], typer.Argument(help="Runs, or the beginnings of their names.", autocompletion=known("runs"))
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete runs with all that was measured of them; files that affbench did not write stay."""
    from affbench.run.folder import delete, list_runs, pick_run, runs_dir

    there = {run.name: run for run in list_runs(session.workspace.results)}
    chosen = [pick_run(name, there, runs_dir(session.workspace.results)) for name in runs]
    names = ", ".join(run.name for run in chosen)
    if not yes:
        typer.confirm(f"Delete {names}?", abort=True, err=True)
    left = [run.path for run in chosen if not delete(run)]
    session.show(f"deleted {names}")
    for path in left:
        session.workspace.progress.note(f"{path} holds files that affbench did not write; they stay.")
    session.document({"deleted": [run.name for run in chosen]})
