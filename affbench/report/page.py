"""The report: one Markdown file and one self-contained HTML page over any number of runs."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from affbench.analysis.results import Result, Results
from affbench.base.store import write_text
from affbench.base.version import __version__
from affbench.report.drawing import Drawing
from affbench.report.sections import (
    MakeSection,
    ablation,
    accuracy,
    capsules,
    classes,
    entropy,
    equivariance,
    evaluations,
    factors,
    matched,
    methods,
    mistakes,
    pairs,
    positions,
    published,
    routing,
    samples,
    training,
    transformation,
)
from affbench.report.table import Table, markdown_text, percent, plain

FIGURES = "figures"
EXPLAINED: tuple[MakeSection, ...] = (factors.section, equivariance.section)
"""Sections for which something is measured, on some thousand images a model."""
SECTIONS: tuple[MakeSection, ...] = (
    accuracy.section,
    matched.section,
    pairs.section,
    published.section,
    routing.section,
    ablation.section,
    training.section,
    transformation.section,
    classes.section,
    mistakes.section,
    positions.section,
    *EXPLAINED,
    capsules.section,
    entropy.section,
    samples.section,
    methods.section,
    evaluations.section,
)
"""What a report shows, in this order."""
PLAIN = tuple(section for section in SECTIONS if section not in EXPLAINED)


@dataclass(frozen=True)
class Report:
    """A written report, ``report.md`` and ``report.html``, and its summary, one row per model configuration."""

    markdown: Path
    html: Path
    table: Table


@dataclass(frozen=True)
class _RunDetails:
    name: str
    facts: str
    config: str
    environment: str


def write_report(
    folder: Path, results: Results, *, title: str, note: str = "", sections: Sequence[MakeSection] = PLAIN
) -> Report:
    """Write ``report.md``, ``report.html`` and ``figures/`` over some runs, in the place of files of the same names.

    The note is what has to be said of all its numbers, such as that they are of a sample: it stands under the title.
    What could not be read or shown is named.
    """
    made = [section for make in sections if (section := make(results, folder / FIGURES))]
    page = {
        "title": title,
        "note": note,
        "sections": [own for own in made if own.tables or own.figures or own.paragraphs],
        "problems": list(dict.fromkeys((*results.problems, *(text for own in made for text in own.problems)))),
        "runs": [_details(result) for result in results.results],
        "version": __version__,
    }
    markdown, html = folder / "report.md", folder / "report.html"
    templates = environment()
    write_text(markdown, plain(templates.get_template("report.md.j2").render(page)))
    style, script = (_template(name) for name in ("report.css", "report.js"))
    page |= {"style": Markup(style), "script": Markup(script), "style_hash": _hash(style), "script_hash": _hash(script)}  # noqa: S704 - our own files
    write_text(html, plain(templates.get_template("report.html.j2").render(page)))
    return Report(markdown, html, accuracy.summarise(results, note=note))


@cache
def report_code() -> str:
    """A hash of all that makes a page of finished runs, for its key: nobody has to remember to raise a version."""
    package = files("affbench")
    folders = ("report", "report/sections", "report/templates", "analysis")
    found = [file for folder in folders for file in (package / folder).iterdir() if file.is_file()]
    content = {f"{file}": file.read_bytes() for file in (*found, package / "base" / "statistics.py")}
    names = sorted(content, key=lambda name: name.rsplit("affbench", 1)[-1])
    return hashlib.sha256(b"\0".join(content[name] for name in names)).hexdigest()


def _details(result: Result) -> _RunDetails:
    run = result.run
    best, environment = run.selected, run.environment
    facts = [
        f"seed {result.seed}",
        f"checkpoint of epoch {best.epoch:g} of {run.history[-1].epoch:g}",
        f"validation {percent(best.validation_accuracy)}%",
        *(f"{name} {percent(record.accuracy)}%" for name, record in result.evaluations.items()),
        f"{result.seconds_per_epoch:.1f} s per epoch on {environment.device_name or 'an unnamed device'}",
    ]
    text = environment.model_dump_json(indent=2, exclude_unset=True)
    return _RunDetails(run.name, "; ".join(facts), run.config.to_toml().strip(), text)


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
    templates.filters["md"] = lambda text: Markup(markdown_text(text))  # noqa: S704 - escaped for Markdown
    templates.filters["lines"] = lambda text: Markup("<br>").join(plain(text).split("\n"))
    templates.filters["fenced"] = _fenced
    templates.filters["link"] = lambda path: f"{FIGURES}/{quote(path.name)}"
    templates.filters["uri"] = _data_uri
    templates.filters["anchor"] = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower())
    return templates


def _data_uri(drawing: Drawing) -> str:
    return f"data:image/png;base64,{base64.b64encode(drawing.path.read_bytes()).decode()}"


def _fenced(text: str, language: str) -> Markup:
    """Text as a Markdown code block, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704 - nothing in a code block is markup


def _template(name: str) -> str:
    return (files("affbench.report") / "templates" / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """The name of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
