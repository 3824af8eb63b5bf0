"""The report as a reader gets it: what it says, what it never lets through, and that a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_folders import make_run, study

from affbench.analysis.results import LabelledRun, Results, read_results
from affbench.report.drawing import new_figure, save_drawing
from affbench.report.page import write_report
from affbench.report.sections import Section
from affbench.report.table import Cell, Table
from affbench.run.folder import Run

NOTE = "Far too small to mean anything."
HOSTILE = "<script>alert('x')</script> | [a](javascript:x) `b` \u202e"


class Reader(HTMLParser):
    """Collects what matters of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def runs(tmp_path: Path) -> list[LabelledRun]:
    return study(tmp_path / "runs", seeds=2)


def test_numbers_stand_in_both_files_with_interval_and_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", accuracy={"affnist-synthetic": 0.75, "mnist-translated": 0.9625})
    report = write_report(tmp_path / "report", read_results([run]), title="A title", note=NOTE)
    record = run.run.evaluations["affnist-synthetic"]
    assert record.ci95_clustered is not None
    low, high = record.ci95_clustered
    for text in (report.markdown.read_text(), Reader(report.html.read_text()).text):
        for word in ("A title", NOTE, "75.00", "96.25", f"{100 * low:.2f}", f"{100 * high:.2f}", "4,061,696", "640"):
            assert word in text


def test_published_figures_stand_beside_ours_with_their_status(tmp_path: Path, runs: list[LabelledRun]) -> None:
    report = write_report(tmp_path / "report", read_results(runs), title="t")
    text = report.markdown.read_text()
    for word in ("79", "66", "93.21", "stated in the paper", "widely quoted, not re-checked"):
        assert word in text
    assert "[mem]" not in text


def test_page_is_self_contained(tmp_path: Path, runs: list[LabelledRun]) -> None:
    html = write_report(tmp_path / "report", read_results(runs), title="t").html.read_text()
    page = Reader(html)
    sources = [attributes["src"] for tag, attributes in page.tags if tag in ("img", "script") and "src" in attributes]
    assert sources
    for source in sources:
        assert source is not None
        kind, _, content = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(content).decode()
        assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314 - our own
        assert not re.search(r"<script|href=\"(?!#|data:image/png)", svg)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object")]
    assert "url(http" not in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_links_lead_to_files_that_are_there(tmp_path: Path, runs: list[LabelledRun]) -> None:
    report = write_report(tmp_path / "report", read_results(runs), title="t")
    links = re.findall(r"\]\((figures/[^)]+)\)", report.markdown.read_text())
    assert len(links) >= 6
    assert any(link.endswith(".csv") for link in links)
    for link in links:
        assert (tmp_path / "report" / link).is_file()


def test_names_from_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "runs", HOSTILE, options={"routings": 3, "trick": HOSTILE}, environment={"torch": HOSTILE}
    )
    report = write_report(tmp_path / "report", read_results([run]), title=HOSTILE, note=HOSTILE)
    page = Reader(report.html.read_text())
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1
    assert "alert('x')" in page.text
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    markdown = re.sub(r"```.*?```", "", report.markdown.read_text(), flags=re.DOTALL)
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    assert "\u202e" not in report.html.read_text()


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    good = make_run(tmp_path / "runs")
    damaged = make_run(tmp_path / "runs", "Damaged", seed=1)
    (damaged.run.path / "eval-mnist-translated.json").write_text("{")
    unfinished = make_run(tmp_path / "runs", "Unfinished", seed=2, finished=False)
    gone = LabelledRun("Gone", Run(tmp_path / "runs" / "gone"))
    runs = [good, LabelledRun(damaged.label, Run(damaged.run.path)), unfinished, gone]
    report = write_report(tmp_path / "report", read_results(runs), title="t")
    text = report.markdown.read_text().replace("\\", "")
    assert "eval-mnist-translated.json" in text
    assert unfinished.run.name in text
    assert len(report.table.rows) == 2


def test_damaged_evaluation_in_a_sweep_is_left_out_and_named(tmp_path: Path, runs: list[LabelledRun]) -> None:
    (runs[0].run.path / "eval-mnist-translated.json").write_text("{")
    read_anew = [LabelledRun(entry.label, Run(entry.run.path)) for entry in runs]
    text = Reader(write_report(tmp_path / "report", read_results(read_anew), title="t").html.read_text()).text
    assert f"An evaluation of run {runs[0].run.name} is left out" in text
    assert "Claims of earlier work" in text


def test_a_section_of_ones_own_is_shown_in_both_files_with_its_data(tmp_path: Path) -> None:
    def own(results: Results, folder: Path) -> Section:
        figure = new_figure(2, 2)
        figure.subplots().plot([1, 2])
        drawing = save_drawing(figure, folder / "a sheet.png", "A sheet", "What it shows.", ("row", "index"), [(1, 2)])
        return Section("More to see", (Table("A table", ("a",), ((Cell("b"),),)),), (drawing,), problems=("A pity.",))

    results = read_results([make_run(tmp_path / "runs")])
    report = write_report(tmp_path / "report", results, title="t", note=NOTE, sections=[own])
    page = Reader(report.html.read_text())
    for word in ("More to see", "A table", "What it shows.", "A pity."):
        assert word in page.text
    assert page.text.count(NOTE) == 1
    assert (tmp_path / "report" / "figures" / "a sheet.csv").read_text() == "row,index\n1,2\n"
    assert ("a", {"href": "figures/a%20sheet.csv"}) in page.tags
    assert "(figures/a%20sheet.png)" in report.markdown.read_text()


def test_every_figure_has_its_data_beside_it(tmp_path: Path, runs: list[LabelledRun]) -> None:
    report = write_report(tmp_path / "report", read_results(runs), title="t")
    page = Reader(report.html.read_text())
    figures = sum(tag == "img" for tag, _ in page.tags)
    data = [str(found["href"]) for tag, found in page.tags if tag == "a" and str(found["href"]).endswith(".csv")]
    assert figures == len(data) > 3
    assert all((report.html.parent / link).is_file() for link in data)


def test_numbers_by_transformation_are_folded_under_their_figure(tmp_path: Path, runs: list[LabelledRun]) -> None:
    report = write_report(tmp_path / "report", read_results(runs), title="t")
    html, markdown = report.html.read_text(), report.markdown.read_text()
    figure = html.index('alt="Accuracy by transformation, affnist-synthetic"')
    folded = html.index('<details class="numbers">', figure)
    assert (
        figure
        < folded
        < html.index("<summary>By transformation: affnist-synthetic", folded)
        < html.index("rotation", folded)
    )
    assert "<details><summary>By transformation: affnist-synthetic" in markdown
    assert len(list((tmp_path / "report" / "tables").glob("by-transformation*.tex"))) == 1


def test_figures_take_the_colours_of_the_page_in_both_themes(tmp_path: Path, runs: list[LabelledRun]) -> None:
    html = write_report(tmp_path / "report", read_results(runs), title="t").html.read_text()
    for content in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html):
        svg = base64.b64decode(content).decode()
        style, drawn = svg.split("</style>", 1)
        assert "prefers-color-scheme: dark" in style
        assert set(re.findall(r"var\((--\w+)", drawn)) <= set(re.findall(r"(--\w+):", style))
        assert not re.search(r"#(222222|fefefe|0072b2)|font-family", drawn)


def test_sections_answer_the_questions_of_a_sweep(tmp_path: Path, runs: list[LabelledRun]) -> None:
    text = Reader(write_report(tmp_path / "report", read_results(runs), title="t").html.read_text()).text
    for word in ("Claims of earlier work", "Not enough seeds to say", "Pair by pair", "Number of evaluations"):
        assert word in text


def test_methods_paragraph_states_what_was_done(tmp_path: Path) -> None:
    text = Reader(
        write_report(tmp_path / "report", read_results([make_run(tmp_path / "runs")]), title="t").html.read_text()
    ).text
    for word in (
        "Adam",
        "0.96 every 2,000 steps",
        "validation accuracy",
        "test sets played no part",
        "mnist-translated",
    ):
        assert word in text


def test_a_hundred_runs_take_seconds(tmp_path: Path) -> None:
    runs = study(tmp_path / "runs", seeds=17)
    assert len(runs) == 102
    report = write_report(tmp_path / "report", read_results(runs), title="t")
    assert len(report.table.rows) == 6


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHECKS = """
<script>
document.querySelectorAll("details").forEach((part) => { part.open = true; });
addEventListener("load", () => setTimeout(() => {
  const found = {errors: window.__errors, overflow: [], images: 0, broken: 0};
  for (const image of document.images) { found.images++; if (!image.complete || !image.naturalWidth) found.broken++; }
  const width = document.documentElement.clientWidth;
  found.overflow = document.documentElement.scrollWidth - width;
  const table = document.querySelector("table.sortable");
  const read = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent.trim());
  const before = read();
  const head = table.tHead.rows[0].cells[1];
  (head.querySelector("button") || head).click();
  found.before = before; found.once = read();
  (head.querySelector("button") || head).click();
  found.twice = read();
  const wide = (place) => place.scrollWidth > place.clientWidth + 1;
  const says = (place) => getComputedStyle(place, "::before").content;
  const tables = [...document.querySelectorAll(".scroll")].filter(wide);
  found.scrolling = tables.length; found.silent = tables.filter((place) => !says(place).includes("sideways")).length;
  const paper = document.querySelector(".paper"), image = paper.querySelector("img");
  found.shown = [image.clientWidth]; found.hint = says(paper.nextElementSibling);
  paper.click();
  found.shown.push(image.clientWidth, image.naturalWidth);
  parent.postMessage(JSON.stringify(found), "*");
}, 1000));
</script>
"""


# A headless window cannot be as narrow as a phone, but a frame can.
FRAME = """
<!doctype html><iframe src="page.html" width="{width}" height="900" style="border: 0"></iframe>
<script>
addEventListener("message", event => {{
  const out = document.createElement("pre"); out.id = "found"; out.textContent = event.data;
  document.body.append(out);
}});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [360, 1200])
def test_browser_shows_the_page(tmp_path: Path, runs: list[LabelledRun], width: int) -> None:
    html = write_report(tmp_path / "report", read_results(runs), title="t", note=NOTE).html.read_text()
    watch = "<script>window.__errors = []; addEventListener('error', e => window.__errors.push(e.message));</script>"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    page = tmp_path / "page.html"
    page.write_text(html.replace("<head>", f"<head>{watch}", 1).replace("</body>", f"{CHECKS}</body>", 1))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=4000", "--dump-dom"]
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, check=False, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-500:]
    found = json.loads(match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found["errors"] == []
    assert found["images"] >= 5
    assert found["broken"] == 0
    assert found["overflow"] <= 0
    fitting, enlarged, natural = found["shown"]
    assert enlarged == natural
    assert (fitting < natural, "Tap" in found["hint"]) == ((True, True) if width == 360 else (False, False))
    assert found["silent"] == 0
    assert found["scrolling"] > 0 or width > 360
    assert found["once"] != found["twice"]
    assert sorted(found["once"]) == sorted(found["twice"]) == sorted(found["before"])
