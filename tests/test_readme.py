"""What README, docs and the other pages tell people to type works, and what they name exists."""

from __future__ import annotations

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tiny import tiny_config

from affbench.base import config
from affbench.base.workspace import Workspace
from affbench.cli.app import app
from affbench.data.sets import SETS, find_set
from affbench.models import model_names
from affbench.report.page import SECTIONS
from affbench.run.train import train

REPOSITORY = Path(__file__).parents[1]
GUIDE = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
PAGES = (*GUIDE, *(REPOSITORY / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "results/reference/README.md")))
TEXT = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
GUIDE_TEXT = "\n".join(TEXT[path.relative_to(REPOSITORY).as_posix()] for path in GUIDE)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GROUP = typer.main.get_command(app)


def blocks(text: str, language: str) -> list[str]:
    return [block for found, block in FENCED.findall(text) if found == language]


def spans(text: str) -> list[str]:
    """What stands between backticks within lines."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def commands(text: str) -> set[str]:
    code = "\n".join([*blocks(text, ""), *spans(text)])
    return {line.split("#")[0].strip() for line in re.findall(r"affbench (?=[a-z]).*", code)}


def options(command: Any) -> set[str]:
    parameters = command.get_params(command.make_context("affbench", [], resilient_parsing=True))
    own = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


SPANS = [(page, span) for page, text in TEXT.items() for span in spans(text)]
EXAMPLES = [(page, block) for page, text in TEXT.items() for block in blocks(text, "python")]
PRINTED = {
    "torch.save(": r"^affnist-synthetic-sample, test split, 500 images\naccuracy %  ",
    "affbench.evaluate(": r" 200 float32 None\n",
    "affbench.benchmark(": r"affnist-synthetic-sample",
    "synthesize(": r"^\(200, 40, 40\) \(200,\) \(200, 6\) \(200,\)\n\(40, 40, 40\)\n$",
    "AffNIST(": r"^torch.Size\(\[1, 40, 40\]\) torch.Size\(\[6\]\)\n$",
}  # what an example prints, by the call that it shows


@pytest.mark.parametrize("line", sorted(set().union(*map(commands, TEXT.values()))))
def test_every_command_is_accepted(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = GROUP.commands[name]  # type: ignore[attr-defined]
    if arguments:  # a name alone speaks of the command
        command.make_context(name, arguments)  # raises on unknown options and bad values


def test_every_command_has_its_line_in_the_readme() -> None:
    known = GROUP.commands  # type: ignore[attr-defined]
    assert {line.split()[1] for line in commands(TEXT["README.md"])} == set(known)


def test_every_option_that_is_named_exists() -> None:
    known = options(GROUP) | {"--help", "--version"}
    named = {(page, span.split()[0]) for page, span in SPANS if re.match(r"--|-\w\b", span)}
    assert {(page, option) for page, option in named if option not in known} == set()


def test_sets_models_and_pipelines_are_named() -> None:
    for name in (*SETS, *model_names()):
        assert f"`{name.removesuffix('-sample')}`" in GUIDE_TEXT
        assert name in model_names() or find_set(name)
    for path in (REPOSITORY / "pipelines").glob("*.toml"):
        assert f"`{path.stem}`" in GUIDE_TEXT


def test_every_model_stands_in_the_table_of_models() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", TEXT["docs/models.md"], re.MULTILINE)
    assert sorted(named) == sorted(model_names())


def test_keys_of_pipelines_are_named() -> None:
    rows = dict(re.findall(r"^\| (\S+) \| (`.*) \|$", TEXT["docs/experiment.md"], re.MULTILINE))
    for row, kind in {
        "`[data]`": config.DataConfig,
        "`[training]`": config.TrainingConfig,
        "`[evaluation]`": config.EvaluationConfig,
        "`[[runs]]`": config.PipelineRuns,
    }.items():
        assert set(spans(rows[row])) == set(kind.model_fields)
    tables = {"data", "training", "evaluation", "runs"}
    assert set(spans(rows["(top)"])) == set(config.Pipeline.model_fields) - tables


def test_sections_of_the_report_are_named_in_their_order() -> None:
    table = TEXT["docs/results.md"].partition("| section |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| ([A-Z][^|]*) \|", table, re.MULTILINE)
    titles = []
    for section in SECTIONS:
        source = Path(inspect.getfile(section)).read_text(encoding="utf-8")
        made = re.findall(r'Section\(\s*"([^"]+)"', source) or re.findall(r'title = "([^"]+)"', source)
        titles.append(made[-1])
    assert [name for name in named if name != "Runs"] == titles


def test_pipelines_that_are_shown_can_be_read(tmp_path: Path) -> None:
    for number, block in enumerate(blocks(GUIDE_TEXT, "toml")):
        path = tmp_path / f"shown-{number}.toml"
        path.write_text(block, encoding="utf-8")
        assert config.read_pipeline(path).expand()


@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_python_runs_and_prints(
    page: str, code: str, capsys: pytest.CaptureFixture[str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = workspace.data
    monkeypatch.setenv("AFFBENCH_DATA_DIR", str(data_dir))
    monkeypatch.setenv("AFFBENCH_RESULTS_DIR", str(workspace.results))
    monkeypatch.chdir(workspace.results.parent)
    if "load_model" in code:
        train(tiny_config(epochs=1), workspace)
    exec(code.replace('"data"', repr(str(data_dir))), {})  # noqa: S102 - our own pages
    printed, *_ = [pattern for call, pattern in PRINTED.items() if call in code]
    assert re.search(printed, capsys.readouterr().out)


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT[page]):
        if not target.startswith("http"):
            path, _, heading = target.partition("#")
            linked = (REPOSITORY / page).parent / path if path else REPOSITORY / page
            assert linked.exists()
            if heading:
                headings = re.findall(r"^#+ (.+)", linked.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    for path in (REPOSITORY / "docs").glob("*.md"):
        assert f"](docs/{path.name}" in TEXT["README.md"]


def test_files_and_modules_that_are_named_exist() -> None:
    missing = set()
    for page, span in SPANS:
        if re.fullmatch(r"(benchmarks|pipelines|tests|docs|affbench|\.ci)/[\w./-]*", span):
            if not (REPOSITORY / span).exists():
                missing.add((page, span))
        elif re.fullmatch(r"affbench(\.\w+)+", span) and not resolves(span):
            missing.add((page, span))
    assert missing == set()


def resolves(name: str) -> bool:
    module, *rest = name.split(".")
    found: object = import_module(module)
    for part in rest:
        try:
            found = import_module(f"{module}.{part}")
            module = f"{module}.{part}"
        except ModuleNotFoundError:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
    return True
