"""The commands that look at, convert, check and tidy data; ``affbench.cli.app`` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affbench.base.errors import UsageError
from affbench.cli.session import Session, command

Copies = Annotated[int, typer.Option(min=1, max=1000, help="Versions of each digit in a synthetic affine set.")]
SetName = Annotated[str, typer.Option("--set", help="Set; see 'affbench status' for those that are there.")]
ImageLimit = Annotated[int | None, typer.Option(min=1, help="Use the first N images only.")]
Rotation = Annotated[float | None, typer.Option(help="Synthetic sets: rotation up to ± this many degrees.")]
Shear = Annotated[float | None, typer.Option(help="Synthetic sets: shear up to ± this.")]
Expansion = Annotated[float | None, typer.Option(help="Synthetic sets: expansions within 1 ± this.")]
Translation = Annotated[float | None, typer.Option(help="Synthetic sets: translation up to ± this many pixels.")]
Only = Annotated[str | None, typer.Option(help="Synthetic sets: vary only this factor, such as rotation.")]


def varied(name: str, only: str | None, **half_widths: float | None) -> str:
    """The set's name with the variations given as options."""
    from affbench.data.sets import find_set, varied_name

    named = varied_name(name, only=only, **half_widths)
    if named != name and "@" in name:
        raise UsageError(f"set '{name}' names its variation already; leave out the options that vary it.")
    return find_set(named).name


@command
def show(
    session: Session,
    set_name: SetName,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    rotation: Rotation = None,
    shear: Shear = None,
    expansion: Expansion = None,
    translation: Translation = None,
    only: Only = None,
    output: Annotated[Path | None, typer.Option(help="Folder; results/pictures by default.")] = None,
) -> None:
    """A sheet of a set: originals at the left, their versions beside them; and histograms of the six factors."""
    name = varied(set_name, only, rotation=rotation, shear=shear, expansion=expansion, translation=translation)
    from affbench.report.pictures import sample_pictures

    folder = output or session.workspace.results / "pictures"
    pictures = sample_pictures([name], session.workspace.data, folder, split=split)
    session.show(*(f"{picture.title}: {picture.path}" for picture in pictures))
    session.document({"pictures": [str(picture.path) for picture in pictures]})


@command
def export(
    session: Session,
    set_name: SetName,
    target: Annotated[Path, typer.Argument(help="A .mat file, or a folder or .zip for batches.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    copies: Copies = 32,
    limit: ImageLimit = None,
    rotation: Rotation = None,
    shear: Shear = None,
    expansion: Expansion = None,
    translation: Translation = None,
    only: Only = None,
) -> None:
    """Write an affine set in the layout of the official affNIST files, for other people's loaders."""
    name = varied(set_name, only, rotation=rotation, shear=shear, expansion=expansion, translation=translation)
    from affbench.data.affnist import export_mat
    from affbench.data.sets import load_dataset

    dataset = load_dataset(name, split, session.workspace.data, copies, limit)
    export_mat(dataset, target)
    session.show(f"{len(dataset):,} images of {name} ({split}): {target}")
    session.document({"set": name, "split": split, "n": len(dataset), "file": str(target)})


@command
def verify(
    session: Session,
    set_name: Annotated[str, typer.Argument(help="affnist, or a synthetic affine set.")] = "affnist",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    sample: Annotated[int, typer.Option(min=1, help="Images to render again.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of images.")] = 0,
) -> None:
    """Render images again from the original digits and the stored transformations, and say how well they agree."""
    from affbench.data.affnist.verify import verify_set

    outcome = verify_set(set_name, split, session.workspace.data, sample=sample, seed=seed)
    session.show(outcome.to_rich(), outcome.sentence)
    session.document(outcome.to_dict())
    if not outcome.agrees:
        raise typer.Exit(1)


@command
def clean(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be freed.")] = False,
) -> None:
    """Delete what nothing refers to: unused converted sets, files of dead processes; never runs or downloads."""
    from affbench.experiment.housekeeping import find_leftovers, remove

    leftovers = find_leftovers(session.workspace.data, session.workspace.results)
    for leftover in leftovers:
        session.show(f"{leftover.path}: {leftover.bytes / 1e6:,.1f} MB, {leftover.reason}")
    freed = sum(leftover.bytes for leftover in leftovers) if dry_run else remove(leftovers)
    session.show(f"{'would free' if dry_run else 'freed'} {freed / 1e6:,.1f} MB")
    session.document({"freed_bytes": freed, "dry_run": dry_run, "paths": [str(item.path) for item in leftovers]})


@command
def doctor(
    session: Session,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask whether the mirrors answer.")] = False,
) -> None:
    """Check environment, data, cache and runs, every checksum included; one line each."""
    from affbench.experiment.housekeeping import diagnose

    findings = []
    for finding in diagnose(session.workspace.data, session.workspace.results, offline=offline):
        findings.append(finding)
        session.show(f"{finding.health:>4}  {finding.subject}: {finding.text}")
    session.document({"findings": [vars(finding) for finding in findings]})
    if any(finding.health == "bad" for finding in findings):
        raise typer.Exit(1)
