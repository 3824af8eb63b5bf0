"""What the tables of a report say, from runs whose figures are known."""

from __future__ import annotations

import io
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_folders import make_run, record, study

from affbench.analysis.published import published_for
from affbench.analysis.results import LabelledRun, read_results
from affbench.base import store
from affbench.report.page import environment
from affbench.report.sections import replication
from affbench.report.sections.accuracy import summarise
from affbench.report.sections.classes import per_class_table
from affbench.report.sections.published import published_table
from affbench.report.sections.routing import sweep_table
from affbench.report.sections.transformation import transformation_figure
from affbench.report.table import Cell, Table
from affbench.report.terminal import evaluation_tables
from affbench.run.folder import Run


def test_a_seed_counts_once_and_other_code_is_another_model(tmp_path: Path) -> None:
    first = make_run(tmp_path, seed=0, accuracy={"mnist-translated": 0.11}, origin={"code": "1" * 64})
    other = make_run(tmp_path, seed=0, accuracy={"mnist-translated": 0.32}, origin={"code": "2" * 64}, name="other")
    shutil.copytree(first.run.path, tmp_path / "backup")
    (tmp_path / "link").symlink_to(first.run.path)
    copies = [LabelledRun("CapsNet", Run(tmp_path / name)) for name in ("backup", "link")]
    results = read_results([first, *copies, other])
    table = summarise(results)
    assert [(row[0].text, row[3].text) for row in table.rows] == [
        *(("CapsNet (code 11111111)", "1"), ("CapsNet (code 22222222)", "1"))
    ]
    assert [cell.text.split("\n")[0] for row in table.rows for cell in row[5:]] == ["10.94", "32.03"]
    assert [problem.partition(":")[0] for problem in results.problems] == [
        "Run backup is left out",
        "Run link is left out",
    ]


def test_other_numbers_of_images_are_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=seed, accuracy={}, options={"routings": seed + 1}) for seed in range(2)]
    for labelled, n in zip(runs, (640, 320), strict=True):
        own = record(labelled.run.path, labelled.run.config, "mnist-translated", 0.5, n)
        store.write_json(labelled.run.path / "eval-mnist-translated.json", own.document())
    table = summarise(read_results(runs))
    assert "Not all models were tested on the same images of mnist-translated" in table.caption
    assert [row[5].text.split("\n")[-1] for row in table.rows] == ["n 640", "n 320"]


def test_a_warning_stands_under_the_summary_and_names_the_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, seed=seed, accuracy={"mnist-translated": 0.9}) for seed in range(2)]
    own = runs[1].run
    warned = own.evaluations["mnist-translated"].model_copy(update={"warning": "the answers depend on the batch."})
    store.write_json(own.path / "eval-mnist-translated.json", warned.document())
    lines = summarise(read_results([runs[0], LabelledRun("CapsNet", Run(own.path))])).caption.split("\n")
    assert lines[1:] == [f"Warning, {own.name} on mnist-translated: the answers depend on the batch."]


def text_of(table: Table | None) -> str:
    assert table is not None
    return table.to_markdown()


def test_one_run_shows_its_accuracy_with_the_interval_over_images(tmp_path: Path) -> None:
    run = make_run(tmp_path, accuracy={"mnist-translated": 0.9})
    (row,) = summarise(read_results([run])).rows
    record = run.run.evaluations["mnist-translated"]
    assert f"{100 * record.accuracy:.2f}" in row[-1].text
    assert f"[{100 * record.ci95[0]:.2f}, {100 * record.ci95[1]:.2f}]" in row[-1].text


def test_seeds_of_one_configuration_share_a_row(tmp_path: Path) -> None:
    values = [0.70, 0.75, 0.72]
    runs = [make_run(tmp_path, seed=seed, accuracy={"affnist-synthetic": v}) for seed, v in enumerate(values)]
    runs.append(make_run(tmp_path, "CNN", model="cnn", accuracy={"affnist-synthetic": 0.6}))
    table = summarise(read_results(runs))
    assert [row[0].text for row in table.rows] == ["CapsNet", "CNN"]
    cell = table.rows[0][-1].text
    found = [run.run.evaluations["affnist-synthetic"].accuracy for run in runs[:3]]
    for figure in (statistics.mean(found), statistics.stdev(found), min(found), max(found)):
        assert f"{100 * figure:.2f}" in cell
    assert table.rows[0][3].text == "3"


def test_different_configurations_under_one_label_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name=f"run{n}", options={"routings": n, "filters": 8 * n}) for n in (1, 3)]
    names = [row[0].text for row in summarise(read_results(runs)).rows]
    assert len(set(names)) == 2


def test_sweep_table_has_a_row_for_each_number_of_iterations(tmp_path: Path) -> None:
    table = sweep_table(read_results(study(tmp_path, seeds=2)))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["1", "3", "5", "10"] or len(table.rows) == 4


def test_tables_by_class_and_transformation_cover_every_bin(tmp_path: Path) -> None:
    results = read_results([make_run(tmp_path)])
    assert len(per_class_table(results, "mnist-translated").rows) == 10
    figure = transformation_figure(results, "affnist-synthetic", tmp_path / "figure.png")
    assert figure is not None
    assert figure.table is not None
    assert len(figure.table.rows) == 24


def test_a_model_tested_in_other_bins_is_named_and_all_others_have_the_same(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, label, name=label) for label in ("A", "B", "C")]
    path = runs[2].run.path / "eval-affnist-synthetic.json"
    record = runs[2].run.evaluation(path)
    others = [share.model_copy(update={"low": share.low - 1}) for share in (record.by_transformation or {})["shear"]]
    changed = record.model_copy(update={"by_transformation": {"shear": tuple(others)}})
    store.write_json(path, changed.document())
    figure = transformation_figure(read_results(runs), "affnist-synthetic", tmp_path / "figure.png")
    assert figure is not None
    assert figure.table is not None
    assert [heading.split("\n")[0] for heading in figure.table.columns[1:]] == ["A", "B"]
    assert all(cell.sort is not None for row in figure.table.rows for cell in row[1:])
    assert "tested on images with other bins, of C." in figure.caption


def test_a_network_made_again_stands_beside_what_is_published_of_it(tmp_path: Path) -> None:
    def made(method: str, name: str, accuracy: float, step: float, **settings: Any) -> list[LabelledRun]:
        tested = [{"affnist-synthetic": accuracy + step * seed} for seed in (0, 1, 2)]
        runs = [make_run(tmp_path, name, name=f"{name}-{s}", seed=s, accuracy=tested[s], **settings) for s in (0, 1, 2)]
        return [replace(run, published=method) for run in runs]

    runs = [*made("CapsNet", "net", 0.76, 0), *made("CapsNet", "net stopped", 0.77, 0.01, stop_at=0.9923)]
    rows = replication.section(read_results(runs), tmp_path).tables[0].rows
    # 79 is published for a network matched at an accuracy; 78 ± 1 over three seeds, whose t interval reaches
    # 4.303 / √3 = 2.48 to either side (accuracies are shares of whole images, so not quite).
    assert [row[0].text for row in rows] == ["net stopped"]
    assert rows[0][2].text == "79\nCapsNet"
    figures = [float(part) for part in re.findall(r"[+-]?[0-9.]+", rows[0][3].text.replace("−", "-"))]
    assert figures == pytest.approx([-1, -3.48, 1.48], abs=0.1)
    stopped_before = made("CapsNet", "net stopped before", 0.7, 0, stop_at=0.985)  # the highest accuracy counts
    assert replication.section(read_results([*runs, *stopped_before]), tmp_path).tables[0].rows == rows
    assert rows[0][4].text == "the interval holds it\n(3 seeds: interval over seeds)"
    shown = replication.section(read_results(runs[:3]), tmp_path).tables[0].rows
    assert [row[0].text for row in shown] == ["net"]
    centred = made("CapsNet", "centred", 0.79, 0, data={"train_set": "mnist-padded", "shift": 0})
    assert replication.section(read_results(centred), tmp_path) is None  # another protocol
    assert replication.section(read_results([make_run(tmp_path / "other")]), tmp_path) is None


def test_the_ablation_on_centred_digits_stands_beside_both_sources(tmp_path: Path) -> None:
    data = {"train_set": "mnist", "shift": 2}
    run = make_run(tmp_path, accuracy={"mnist": 0.9975}, data=data)
    again = replace(run, published="CapsNet, routing 3, reconstruction")
    rows = replication.section(read_results([again]), tmp_path).tables[0].rows
    assert [row[2].text.splitlines()[0] for row in rows] == ["99.75 ± 0.005", "99.66 ± 0.016"]
    assert all("one seed" in row[4].text for row in rows)


def test_published_figures_say_how_well_they_are_confirmed(tmp_path: Path) -> None:
    results = read_results([make_run(tmp_path)])
    text = text_of(published_table(results, "affnist-synthetic"))
    official = published_for("affnist")
    assert len(official) == 27
    for published in official:
        assert f"{published.value:g}" in text
        assert published.status in text
        assert published.trained in text
    assert "cannot be compared directly" in text
    # The table of Gu, Tresp and Hu (2021), whose networks are matched on translated digits.
    gu = [(row.parameters, row.value) for row in official if "2103.15459" in row.source]
    assert gu == [
        ("35.4M", 66.0), ("13.5M", 79.0), ("13.5M", 81.81), ("7.5M", 89.03), ("7.5M", 93.21), ("5.3M", 94.11)
    ]  # fmt: skip
    assert {row.method for row in official if row.protocol == "centred"} == {
        "affConv", "InvarPDEs-Net", "InvarLayer", "LieLAC canonicalisation + CNN"
    }  # fmt: skip
    assert {row.value for row in official if row.status == "quoted in a later paper's table"} == {
        89.1, 93.1, 92.21, 97.69, 95.08, 97.2
    }  # fmt: skip


@pytest.mark.parametrize("name", ["affnist", "affnist-synthetic", "affnist-synthetic-sample", "mnist-translated"])
def test_sets_of_the_paper_have_published_figures(name: str) -> None:
    assert published_for(name)
    assert not published_for("fashion-mnist")


def test_one_evaluation_is_shown_overall_by_class_and_by_factor(tmp_path: Path) -> None:
    record = make_run(tmp_path).run.evaluations["affnist-synthetic"]
    whole, factors = evaluation_tables(record)
    assert len(whole.rows) == 12
    assert f"{100 * record.accuracy:.2f}" in whole.rows[0][2].text
    assert "n = 640 (80 original digits)" in whole.caption
    assert len(factors.rows) == 24


def test_renderings_escape_what_would_be_markup() -> None:
    table = Table("a|b", ("x", "y"), ((Cell("<b>|*"), Cell("1", 1.0)),), "c[red]")
    html = environment().get_template("table.html.j2").render(table=table)
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert '<td class="number" data-sort="1.0">1</td>' in html
    assert "<b>" not in table.to_markdown()
    assert table.to_markdown().count("|") - table.to_markdown().count("\\|") == 9
    with pytest.raises(ValueError, match="do not fit"):
        Table("t", ("x",), ((Cell("1"), Cell("2")),))


def test_a_table_is_csv_and_latex_for_booktabs_as_well() -> None:
    cells = (Cell("10%_of {x} \\ ~^#&$"), Cell("1.00\n[−2, 3]", 1.0), Cell("±2×"))
    table = Table("A & B", ("Model", "Accuracy\n%", "a,b"), (cells,), "n 5 – of 3")
    assert table.to_csv() == 'Model,Accuracy %,"a,b"\n10%_of {x} \\ ~^#&$,"1.00 [-2, 3]",±2×\n'
    risky = Table("t", ("=x",), ((Cell("=1+1"),), (Cell("+1", 1.0),)))
    assert Table("t", ("n",), ((Cell("13,475,648", 13475648),),)).to_csv() == "n\n13475648\n"
    assert risky.to_csv() == "'=x\n'=1+1\n+1\n"
    assert table.to_latex() == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{A \& B. n 5 -- of 3}",
            r"\begin{tabular}{lrl}",
            r"\toprule",
            r"Model & \shortstack[l]{Accuracy\\\%} & a,b \\",
            r"\midrule",
            r"10\%\_of \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}\#\&\$"
            r" & \shortstack[l]{1.00\\{[}$-$2, 3]} & $\pm$2$\times$ \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


@pytest.mark.parametrize("width", [34, 40, 60, 80, 120])
def test_a_terminal_of_any_width_never_breaks_a_word(width: int) -> None:
    names = ("capsnet-r3-seed0-0601a964", "my_very.own.module-Net-seed0-9ee2d418")
    rows = tuple((Cell(name), Cell("13,475,648", 13_475_648), Cell("97.18\n[96.84, 97.49]", 97.18)) for name in names)
    heads = ("Run", "Parameters", "affnist-synthetic-sample@only=rotation\ntest accuracy %")
    screen = io.StringIO()
    Console(file=screen, width=width).print(Table("Two runs", heads, rows, "Their n is 100."), crop=False)
    lines = screen.getvalue().splitlines()
    words = {word for line in lines for word in line.split()}
    assert {*names, "13,475,648", "[96.84,", "97.49]", "affnist-synthetic-sample@only=rotation"} <= words
    assert max(map(len, lines)) <= max(width, 79)  # the longest name beside the longest heading, and two blanks
    if width == 120:
        assert next(line for line in lines if line.startswith(names[0])).endswith("97.18")


def test_a_table_that_is_too_wide_stands_on_its_side() -> None:
    rows = tuple((Cell(name), *(Cell(f"{name}{number}" * 5) for number in range(4))) for name in "abc")
    screen = io.StringIO()
    Console(file=screen, width=40).print(Table("T", ("Run", "First heading", "Second", "Third", "Fourth"), rows))
    lines = [line.split() for line in screen.getvalue().splitlines()]
    assert lines[1] == ["Run", "a", "b"]
    assert lines[3] == ["First", "heading", "a0a0a0a0a0", "b0b0b0b0b0"]
    assert ["Run", "c"] in lines
    assert lines[-1] == ["Fourth", "c3c3c3c3c3"]
