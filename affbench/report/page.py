"""The report: one Markdown file and one self-contained HTML page over any number of runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from affbench.analysis.results import Result, Results
from affbench.base.store import atomic_path, write_text, writing
from affbench.base.version import __version__
from affbench.report import comparisons as compare
from affbench.report import figures as draw
from affbench.report import table as tabulate
from affbench.report.claims import claims_table
from affbench.report.drawing import Drawing
from affbench.report.methods import methods
from affbench.report.table import Table, markdown_text, percent

FIGURES = "figures"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A picture that somebody else drew, to be shown in a report.

    Attributes
    ----------
    title, caption
        What it shows.
    path
        A PNG file; copied into the report's folder where it lies elsewhere.
    data
        The CSV file of its numbers, if there is one; copied likewise.
    """

    title: str
    caption: str
    path: Path
    data: Path | None = None


@dataclass(frozen=True)
class Extra:
    """A section of a report that somebody else made.

    Attributes
    ----------
    title
        Heading.
    tables, pictures
        What it shows.
    problems
        A sentence for each thing that had to be left out.
    """

    title: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes
    ----------
    markdown, html
        ``report.md`` and ``report.html``.
    table
        The summary, one row per model configuration.
    """

    markdown: Path
    html: Path
    table: Table


@dataclass(frozen=True)
class _Image:
    """A picture or figure as the templates show it: `link` and `data_link` are relative, `uri` holds the bytes."""

    title: str
    caption: str
    link: str
    uri: str
    data_link: str = ""


@dataclass(frozen=True)
class _Section:
    title: str
    anchor: str
    tables: tuple[Table, ...] = ()
    images: tuple[_Image, ...] = ()
    paragraphs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _RunDetails:
    name: str
    facts: str
    config: str
    environment: str


def write_report(
    out_dir: Path, results: Results, *, title: str, note: str = "", extras: Sequence[Extra] = ()
) -> Report:
    """Write ``report.md``, ``report.html`` and ``figures/`` over some runs.

    Parameters
    ----------
    out_dir
        The folder; made where it is missing. Files of the same names are replaced.
    results
        The runs, read. Those of one label and configuration are summarised over their seeds; what could not be read is
        named.
    title
        Heading of the report.
    note
        What has to be said of all its numbers, such as that they are of a sample; stands under the title and under
        each table of results.
    extras
        More sections, such as sample sheets.

    Returns
    -------
    Report
        The two files, and the summary table.

    Raises
    ------
    StorageError
        The folder cannot be written.
    """
    table = tabulate.summarise(results, note=note)
    figures = out_dir / FIGURES
    found, problems = _result_sections(results, table, figures, note)
    more, unreadable = _extra_sections(extras, out_dir)
    sections = [*found, *more, _Section("Methods", "methods", paragraphs=tuple(methods(results)))]
    counts = tabulate.evaluations_table(results)
    page = {
        "title": title,
        "note": note,
        "sections": [section for section in sections if section.tables or section.images or section.paragraphs],
        "problems": (*results.problems, *problems, *unreadable),
        "runs": [_details(result) for result in results.results],
        "counts": counts,
        "version": __version__,
    }
    markdown, html = out_dir / "report.md", out_dir / "report.html"
    environment = _environment()
    write_text(markdown, tabulate.plain(environment.get_template("report.md.j2").render(page)))
    style, script = (_template_text(name).strip() for name in ("report.css", "report.js"))
    page |= {"style": Markup(style), "script": Markup(script), "style_hash": _hash(style), "script_hash": _hash(script)}  # noqa: S704 - our own files
    write_text(html, tabulate.plain(environment.get_template("report.html.j2").render(page)))
    return Report(markdown, html, table)


def _result_sections(
    results: Results, summary: Table, folder: Path, note: str
) -> tuple[list[_Section], tuple[str, ...]]:
    """The sections with tables and figures, those without either included, and what had to be left out."""
    matched = compare.matched_table(results, note=note)
    pairs, problems = compare.comparison_tables(results, note=note)
    published = [table for name in results.sets if (table := tabulate.published_table(results, name, note=note))]
    sections = [
        _Section("Results", "results", (summary,), _drawn(draw.accuracy_per_set(results, folder / "accuracy.png"))),
        _Section("Matched accuracy", "matched", (matched,) if matched else ()),
        _Section("Pair by pair", "pairs", tuple(pairs)),
        _Section("Published results", "published", tuple(published)),
    ]
    whole = results.whole
    sweep = tabulate.sweep_table(whole, note=note)
    drawn = draw.routing_sweep(whole, whole.sweeps, folder / "routing-sweep.png")
    claims = claims_table(whole, note=note)
    routing = tuple(table for table in (sweep, claims) if table)
    sections.append(_Section("Routing iterations", "routing", routing, _drawn(drawn)))
    ablation = tabulate.ablation_table(results, note=note)
    sections.append(_Section("Ablation", "ablation", (ablation,) if ablation else ()))
    training = draw.training_curves(whole, folder / "training.png")
    sections.append(_Section("Training", "training", images=_drawn(training)))
    for number, name in enumerate(results.sets, start=1):
        slug = f"{number}-{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:60]}"
        by_factor = tabulate.transformation_table(results, name, note=note)
        by_class = tabulate.per_class_table(results, name, note=note)
        found = [
            *_drawn(draw.by_transformation(results, name, folder / f"transformation-{slug}.png")),
            *_drawn(draw.confusion(results, name, folder / f"confusion-{slug}.png")),
        ]
        tables = (by_class,) if by_factor is None else (by_factor, by_class)
        sections.append(_Section(f"Where it breaks: {name}", f"set-{slug}", tables, tuple(found)))
    return sections, tuple(problems)


def _drawn(figure: Drawing | None) -> tuple[_Image, ...]:
    if figure is None:
        return ()
    link, data = (f"{FIGURES}/{quote(path.name)}" for path in (figure.path, figure.data))
    return (_Image(figure.title, figure.caption, link, _data_uri(figure.path.read_bytes()), data),)


def _extra_sections(extras: Sequence[Extra], out_dir: Path) -> tuple[list[_Section], list[str]]:
    """The sections, their pictures beside the report, and a sentence for each file that is no picture."""
    sections, problems, names = list[_Section](), list[str](), set[str]()
    for number, extra in enumerate(extras, start=1):
        problems += extra.problems
        images = []
        for picture in extra.pictures:
            try:
                content = picture.path.read_bytes()
            except OSError as error:
                problems.append(f"Picture '{picture.title}' is left out: {picture.path.name}: {error.strerror}.")
                continue
            if not content.startswith(_PNG):
                problems.append(f"Picture '{picture.title}' is left out: {picture.path.name} is not a PNG file.")
                continue
            link = _beside(picture.path, out_dir, names)
            data = "" if picture.data is None or not picture.data.is_file() else _beside(picture.data, out_dir, names)
            images.append(_Image(picture.title, picture.caption, link, _data_uri(content), data))
        sections.append(_Section(extra.title, f"extra-{number}", extra.tables, tuple(images)))
    return sections, problems


def _beside(path: Path, out_dir: Path, taken: set[str]) -> str:
    """The link to a file from the report's folder, into which it is copied where it lies elsewhere."""
    if not path.resolve().is_relative_to(out_dir.resolve()):
        name = path.name
        while name in taken:
            name = f"more-{name}"
        taken.add(name)
        source, path = path, out_dir / FIGURES / f"picture-{name}"
        with atomic_path(path) as temporary, writing(path):
            shutil.copyfile(source, temporary)
    return quote(path.resolve().relative_to(out_dir.resolve()).as_posix())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _details(result: Result) -> _RunDetails:
    best, environment = result.selected, result.environment
    facts = [
        f"seed {result.config.training.seed}",
        f"checkpoint of epoch {best.epoch:g} of {result.history[-1].epoch:g}",
        f"validation {percent(best.validation_accuracy)}%",
        *(f"{name} {percent(record.accuracy)}%" for name, record in result.evaluations.items()),
        f"{result.seconds_per_epoch:.1f} s per epoch on {environment.get('device_name') or 'an unnamed device'}",
    ]
    text = json.dumps(dict(environment), indent=2, ensure_ascii=False)
    return _RunDetails(result.name, "; ".join(facts), result.config.to_toml().strip(), text)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("affbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = lambda text: Markup(markdown_text(text))  # noqa: S704 - escaped for Markdown
    environment.filters["fenced"] = _fenced
    return environment


def _fenced(text: str, language: str) -> Markup:
    """Text as a Markdown code block, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704 - nothing in a code block is markup


def _template_text(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The name of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
