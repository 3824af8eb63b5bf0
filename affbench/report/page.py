"""The report: one Markdown file and one self-contained HTML page over any number of runs."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from affbench.analysis.results import Result, Results
from affbench.base.store import write_text
from affbench.base.version import __version__
from affbench.report.sections import MakeSection
from affbench.report.sections.accuracy import summarise
from affbench.report.table import Table, markdown_text, percent, plain

FIGURES, TABLES = "figures", "tables"
TEMPLATES = Path(__file__).parent / "templates"
MEASURED = ("factors", "equivariance")
"""Sections for which something is measured, on some thousand images a model."""
SHOWN = (
    "accuracy", "matched", "pairs", "published", "replication", "routing", "training", "transformation", "classes",
    "mistakes", "positions", *MEASURED, "capsules", "entropy", "samples", "methods", "evaluations",
)  # fmt: skip
"""The sections of a report in this order, by their files in `affbench.report.sections`."""
_MAKE: dict[str, MakeSection] = {name: import_module(f"affbench.report.sections.{name}").section for name in SHOWN}
SECTIONS = tuple(_MAKE.values())
PLAIN = tuple(make for name, make in _MAKE.items() if name not in MEASURED)


@dataclass(frozen=True)
class Report:
    """A written report, ``report.md`` and ``report.html``, and its summary, one row per model configuration."""

    markdown: Path
    html: Path
    table: Table


def write_report(
    folder: Path, results: Results, *, title: str, note: str = "", sections: Sequence[MakeSection] = PLAIN
) -> Report:
    """Write ``report.md``, ``report.html`` and ``figures/`` over some runs; the note holds for all of their numbers."""
    made = [section for make in sections if (section := make(results, folder / FIGURES))]
    page = {
        "title": title,
        "note": note,
        "sections": [own for own in made if own.tables or own.figures or own.paragraphs],
        "problems": list(dict.fromkeys((*results.problems, *(text for own in made for text in own.problems)))),
        "results": results.results,
        "version": __version__,
    }
    for kind, names in (("style", ("colours.css", "style.css")), ("script", ("script.js",))):
        text = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names).strip()
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()  # the page's policy allows it alone
        page |= {kind: Markup(text), f"{kind}_hash": f"sha256-{digest}"}  # noqa: S704 - our own files
    folded = [figure.table for own in made for figure in own.figures if figure.table is not None]
    for table in (*(table for own in made for table in own.tables), *folded):
        name = f"{TABLES}/{_anchor(table.title)}"
        write_text(folder / f"{name}.csv", table.to_csv())
        write_text(folder / f"{name}.tex", table.to_latex())
    markdown, html = folder / "report.md", folder / "report.html"
    for path in (markdown, html):
        write_text(path, plain(environment().get_template(f"{path.name}.j2").render(page)))
    return Report(markdown, html, summarise(results, title=title, note=note))


@cache
def report_code() -> str:
    """A hash of all that makes a page of finished runs, for its key: nobody has to remember to raise a version."""
    package = TEMPLATES.parents[1]
    found = [file for folder in ("report", "analysis") for file in (package / folder).rglob("*") if file.is_file()]
    made_by = sorted(file for file in found if file.suffix != ".pyc")
    content = [file.read_bytes() for file in (*made_by, package / "base" / "statistics.py")]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def _facts(result: Result) -> str:
    run = result.run
    tested = [f"{name} {percent(record.accuracy)}%" for name, record in result.evaluations.items()]
    if run.trained_elsewhere:
        return "; ".join(("trained elsewhere", *tested))
    facts = (
        f"seed {result.seed}",
        f"checkpoint of epoch {run.selected.epoch:g} of {run.history[-1].epoch:g}",
        f"validation {percent(run.selected.validation_accuracy)}%",
        *tested,
        f"{run.seconds_per_epoch:.1f} s per epoch on {run.environment.device_name or 'an unnamed device'}",
    )
    return "; ".join(facts)


@cache
def environment() -> Environment:
    """The templates of the page; whatever they are given is escaped."""
    templates = Environment(
        loader=PackageLoader("affbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "md": lambda text: Markup(markdown_text(text)),  # noqa: S704 - escaped for Markdown
        "lines": lambda text: Markup("<br>").join(plain(text).split("\n")),
        "fenced": _fenced,
        "facts": _facts,
        "json": lambda content: content.model_dump_json(indent=2, exclude_unset=True),
        "link": lambda path: f"{FIGURES}/{quote(path.name)}",
        "uri": lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
        "anchor": _anchor,
    }
    return templates


def _anchor(text: str) -> str:
    """A title as the name of a file, and of a place on the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _fenced(text: str, language: str) -> Markup:
    """Text as a Markdown code block, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704 - nothing in a code block is markup
