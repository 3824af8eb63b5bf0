from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import SAMPLE, Affbench

TINY = ("-o", "filters=4,4", "-o", "hidden=8", "--limit", "64", "--epochs", "1", "--device", "cpu")
AFFINE = "affnist-synthetic-sample"


def train(affbench: Affbench, seed: int = 0) -> str:
    ended = affbench("train", "--model", "cnn", *TINY, "--train-set", SAMPLE, "--seed", str(seed), "--json")
    assert ended.status == 0, ended.stderr
    return str(json.loads(ended.stdout)["run"])


def test_models_are_listed_with_their_parameters_and_options(
    affbench: Affbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    cards = {card["name"]: card for card in json.loads(affbench("models", "--json").stdout)["models"]}
    assert cards["capsnet"]["parameters"] == 13_475_648
    assert "arXiv 1710.09829" in cards["capsnet"]["paper"]
    options = {option["name"]: option for option in cards["capsnet"]["options"]}
    assert (options["routings"]["type"], options["routings"]["default"]) == ("int", 3)
    assert all(option["meaning"] for card in cards.values() for option in card["options"])
    types = next(option for option in cards["em-capsnet"]["options"] if option["name"] == "types")
    assert types["meaning"] == "Types of capsules of the three layers below the classes."
    shown = affbench("models", "cnn").stdout
    assert "dropout" in shown
    assert "Probability in [0, 1) that a hidden unit is dropped in training." in " ".join(
        shown.replace("│", "").split()
    )
    assert affbench("models", "capsnett").status == 2


def test_help_says_what_is_taken_here(affbench: Affbench) -> None:
    shown = " ".join(affbench("train", "--help").stdout.replace("│", "").split())
    assert "--device auto is cpu" in shown or "--device auto is cuda" in shown or "--device auto is mps" in shown
    assert re.search(r"--precision auto is (bfloat16|float32)", shown)
    assert "paper, keras, constant, linear, cosine" in shown


def test_sets_say_how_to_get_them(affbench: Affbench, tmp_path: Path) -> None:
    listed = json.loads(affbench("sets", "--json", data_dir=tmp_path).stdout)["sets"]
    found = {row["set"]: row for row in listed}
    assert found["affnist"]["state"] == "affbench fetch affnist"
    assert found["affnist-train"]["state"] == "affbench fetch affnist-train"
    assert found["mnist-translated"]["state"] == "affbench fetch mnist"
    assert found[AFFINE] | {"form": "affine"} == {
        "set": AFFINE, "form": "affine", "canvas": 40, "state": "made when it is used",
        "images": {"train": 160_000, "validation": 32_000, "test": 32_000},
    }  # fmt: skip
    assert "mnist-translated-sample" in affbench("sets").stdout


def test_a_run_is_deleted_when_it_is_meant_and_nothing_else_is(affbench: Affbench, tmp_path: Path) -> None:
    first, second = train(affbench, 0), train(affbench, 1)
    runs = tmp_path / "results" / "runs"
    (runs / first / "notes.txt").write_text("mine")
    assert affbench("eval", "--run", first, "--set", AFFINE, "--limit", "50").status == 0
    asked = affbench("rm", first)
    assert asked.status == 1
    assert (runs / first / "manifest.json").is_file()
    assert affbench("rm", "nobody", "--yes").status == 2
    assert f"did you mean '{first}'?" in affbench("rm", "cmn-seed0", "--yes").stderr
    assert affbench("rm", first, second, "--yes").status == 0
    assert [path.name for path in (runs / first).iterdir()] == ["notes.txt"]
    assert not (runs / second).exists()


def test_runs_are_compared_in_several_forms(affbench: Affbench) -> None:
    first, second = train(affbench, 0), train(affbench, 1)
    for name in (first, second):
        assert affbench("eval", "--run", name, "--set", AFFINE, "--limit", "100").status == 0
    found = json.loads(affbench("compare", first, second, "--json").stdout)
    assert [table["title"] for table in found["tables"]] == ["Accuracy", f"Pair by pair: {AFFINE}"]
    (sentence,) = found["sentences"]
    assert sentence.startswith(f"{AFFINE}: ")
    assert f"({first} minus {second}: " in sentence
    again = json.loads(affbench("compare", second, first, "--set", AFFINE, "--json").stdout)
    there, back = (table["rows"][0][3]["sort"] for table in (found["tables"][1], again["tables"][1]))
    assert there == -back
    latex = affbench("compare", first, second, "--format", "latex").stdout
    assert latex.count(r"\begin{tabular}") == 2
    assert affbench("compare", first).status == 2
    assert affbench("compare", first, second, "--set", "mnist").status == 1


def test_a_report_is_over_chosen_runs_and_sets_in_a_chosen_folder(affbench: Affbench, tmp_path: Path) -> None:
    first, second = train(affbench, 0), train(affbench, 1)
    for name, tested in ((first, AFFINE), (second, AFFINE), (first, SAMPLE)):
        assert affbench("eval", "--run", name, "--set", tested, "--limit", "50").status == 0
    chosen = ("--run", first, "--set", AFFINE, "--output", str(tmp_path / "paper"))
    page = Path(affbench("report", *chosen, "--json").document["markdown"])
    assert page == tmp_path / "paper" / "report.md"
    assert (first in page.read_text(), second in page.read_text()) == (True, False)
    assert SAMPLE not in (page.parent / "tables" / "summary.csv").read_text()
    assert affbench("report", "--run", "nobody").status == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert affbench("report", "--output", str(tmp_path / "mine")).status == 1
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(("form", "begins"), [("csv", "Model,"), ("latex", "\\begin{table}"), ("markdown", "## ")])
def test_tables_are_printed_in_the_form_asked_for(affbench: Affbench, form: str, begins: str) -> None:
    shown = affbench("models", "--format", form)
    assert shown.status == 0
    assert shown.stdout.startswith(begins)
    wrong = affbench("models", "--format", f"{form}s")
    assert wrong.status == 2
    assert f"did you mean '{form}'?" in wrong.stderr
    assert "--format" in affbench("eval", "--format", f"{form}s").stderr  # before anything is looked for, or tested


def test_shells_complete_names(affbench: Affbench, tmp_path: Path) -> None:
    name = train(affbench)

    def completed(words: str) -> str:
        environment = os.environ | {
            "_AFFBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
            "AFFBENCH_RESULTS_DIR": str(tmp_path / "results"),
        }  # fmt: skip
        code = "import sys; sys.argv[0] = 'affbench'; from affbench.cli.app import main; main()"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    assert completed("affbench eval --run cnn").split() == [name]
    assert completed("affbench train --model caps").split() == ["capsnet"]
    assert "affnist-synthetic-sample" in completed("affbench show --set affnist-s").split()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_status_shows_names_whole_and_committed_runs(
    affbench: Affbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = train(affbench)
    assert affbench("eval", "--run", name, "--set", AFFINE, "--limit", "50").status == 0
    assert affbench("leaderboard", "--add", name).status == 0
    shown = affbench("status").stdout
    assert max(map(len, shown.splitlines())) <= max(width, len(str(tmp_path)) + len("Downloads in /data"))
    assert shown.split().count(name) == 2  # as a run, and among the committed ones
    assert {AFFINE, "mnist-translated-sample", "validation"} <= set(shown.split())
    assert [run["name"] for run in json.loads(affbench("status", "--json").stdout)["reference"]] == [name]


def test_clean_is_short_and_names_an_example_of_each_kind(affbench: Affbench) -> None:
    for name in ("mnist-sample", "mnist-padded-sample", AFFINE):
        assert affbench("show", "--set", name).status == 0
    lines = affbench("clean", "--dry-run").stdout.splitlines()
    assert len(lines) <= 10
    assert any(
        re.fullmatch(r"[\d.]+ MB, \d+ such as .+\.h5: no run was trained or tested on it", line) for line in lines
    )
    assert lines[-1].startswith("would free ")
    assert len(json.loads(affbench("clean", "--dry-run", "--json").stdout)["paths"]) > len(lines)


def test_lines_beside_tables_for_another_program_are_messages(affbench: Affbench, tmp_path: Path) -> None:
    name = train(affbench)
    assert affbench("eval", "--run", name, "--set", AFFINE, "--limit", "50").status == 0
    shown = affbench("report", "--format", "csv", "--output", str(tmp_path / "paper"))
    assert shown.stdout.splitlines()[0].startswith("Model,Parameters,")
    assert len(shown.stdout.splitlines()) == 2
    assert "report.html" in shown.stderr


def test_no_help_breaks_a_name_at_80_columns(affbench: Affbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = re.findall(r"│ ([a-z]+) ", affbench("--help").stdout)
    figures = re.findall(r"│ ([a-z]+) ", affbench("figure", "--help").stdout)
    assert len(commands) > 15
    assert len(figures) == 6
    for words in [[name] for name in commands] + [["figure", name] for name in figures]:
        shown = affbench(*words, "--help")
        assert shown.status == 0
        assert max(map(len, shown.stdout.splitlines())) <= 80
        assert not [line for line in shown.stdout.splitlines() if re.search(r"\S…", line)], words
