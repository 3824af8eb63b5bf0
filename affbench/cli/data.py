"""The commands that look at, convert, check and tidy data."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from affbench.cli.options import Images, Split, known
from affbench.cli.session import Session, command


@command
def fetch(
    session: Session,
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            help="mnist, affnist, fashion-mnist, affnist-validation, affnist-train, homnist.",
            autocompletion=known("sources"),
        ),
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="URL or folder that is tried first.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
) -> None:
    """Download, verify and convert sets (default: mnist affnist)."""
    from affbench.data.fetch.files import Ways
    from affbench.data.fetch.sets import fetch_sets

    ways = Ways(mirror, offline, force, session.workspace.progress)
    fetched = fetch_sets(sets or ["mnist", "affnist"], session.workspace.data, ways)
    for item in fetched:
        files = [f"{file.path.name} from {file.origin}, sha256 {file.sha256}" for file in item.files]
        session.show(*(f"{item.name}: {told}" for told in (*files, *item.converted)))
    session.document({"sets": [asdict(item) for item in fetched]})


@command
def status(session: Session) -> None:
    """Data, cache and runs at a glance."""
    from affbench.experiment.housekeeping import read_status, status_tables

    state = read_status(session.workspace.data, session.workspace.results)
    session.show(*status_tables(state))
    session.document(asdict(state))


@command
def show(
    session: Session,
    images: Images,
    split: Split = "test",
    output: Annotated[Path | None, typer.Option(help="Folder; results/pictures by default.")] = None,
) -> None:
    """A sheet of a set: originals at the left, their versions beside them; and histograms of the six factors."""
    from affbench.report.sheets import set_drawings

    folder = output or session.workspace.results / "pictures"
    pictures = set_drawings(images.part(split), session.workspace.data, folder)
    session.show(*(f"{picture.title}: {picture.path}" for picture in pictures))
    session.document({"pictures": [str(picture.path) for picture in pictures]})


@command
def export(
    session: Session,
    images: Images,
    target: Annotated[Path, typer.Argument(help="A .mat file, or a folder or .zip for batches.")],
    split: Split = "test",
) -> None:
    """Write an affine set in the layout of the official affNIST files, for other people's loaders."""
    from affbench.data.affnist import export_mat

    dataset = images.part(split).load(session.workspace.data)
    export_mat(dataset, target)
    session.show(f"{len(dataset):,} images of {dataset.name} ({split}): {target}")
    session.document({"set": dataset.name, "split": split, "n": len(dataset), "file": str(target)})


@command
def verify(
    session: Session,
    set_name: Annotated[str, typer.Argument(help="affnist, or a synthetic affine set.")] = "affnist",
    split: Split = "test",
    sample: Annotated[int, typer.Option(min=1, help="Images to render again.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of images.")] = 0,
) -> None:
    """Render images again from the original digits and the stored transformations, and say how well they agree."""
    from affbench.data.affnist.verify import verify_set
    from affbench.report.table import Cell, Table

    outcome = verify_set(set_name, split, session.workspace.data, sample=sample, seed=seed)
    title = f"{outcome.name}, {outcome.split}: {outcome.n:,} cases rendered again"
    headings = ("factor", "reading", "mean difference", "… without the factor")
    best = f"{outcome.best_difference:.2f}"
    rows = [
        (check.factor.replace("_", " "), check.reading, best, f"{check.neutral_difference:.2f}")
        for check in outcome.factors
    ]
    session.show(Table(title, headings, tuple(tuple(map(Cell, row)) for row in rows)), outcome.sentence)
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
    freed = sum(leftover.bytes for leftover in leftovers) if dry_run else remove(leftovers)
    for reason in dict.fromkeys(leftover.reason for leftover in leftovers):
        own = sorted((item.bytes, item.path.name) for item in leftovers if item.reason == reason)
        session.show(f"{sum(size for size, _ in own) / 1e6:,.1f} MB, {len(own)} such as {own[-1][1]}: {reason}")
    session.show(f"{'would free' if dry_run else 'freed'} {freed / 1e6:,.1f} MB; --json names every file")
    session.document({"freed_bytes": freed, "dry_run": dry_run, "paths": [str(item.path) for item in leftovers]})


@command
def doctor(
    session: Session,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask whether the mirrors answer.")] = False,
) -> None:
    """Check environment, data, cache and runs, every checksum included; one line each."""
    from affbench.experiment.housekeeping import ask_mirrors, diagnose

    checks = diagnose(session.workspace.data, session.workspace.results)
    findings = []
    for finding in checks if offline else itertools.chain(checks, ask_mirrors()):
        findings.append(finding)
        session.show(f"{finding.health:>4}  {finding.subject}: {finding.text}")
    session.document({"findings": [vars(finding) for finding in findings]})
    if any(finding.health == "bad" for finding in findings):
        raise typer.Exit(1)
