"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from affbench.cli.app import app
from affbench.data.sets import find_set, set_names
from affbench.models import model_names

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", FENCED.sub("", README))
CODE = "\n".join([block for language, block in FENCED.findall(README) if not language] + INLINE)
COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(r"affbench (?=[a-z]).*", CODE)})


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_the_readme_is_accepted(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)  # raises on unknown options and bad values


def test_every_command_has_its_line_in_the_readme() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {line.split()[1] for line in COMMANDS} == set(known)


def test_sets_models_and_pipelines_are_named() -> None:
    for name in (*set_names(), *model_names()):
        assert f"`{name.removesuffix('-sample')}`" in README
        assert name in model_names() or find_set(name)
    for path in (REPOSITORY / "pipelines").glob("*.toml"):
        assert f"`{path.stem}`" in README


def test_python_in_the_readme_runs(
    capsys: pytest.CaptureFixture[str], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFBENCH_DATA_DIR", str(data_dir))
    first, second = (block for language, block in FENCED.findall(README) if language == "python")
    exec(first, {})  # noqa: S102 - our own README
    assert capsys.readouterr().out.endswith(" 200 float32 None\n")
    exec(second, {})  # noqa: S102
    assert "affnist-synthetic-sample" in capsys.readouterr().out


def test_links_to_files_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert targets
    for target in targets:
        assert (REPOSITORY / target).exists()
