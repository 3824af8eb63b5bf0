from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tiny import tiny_config

from affbench.base.config import RunConfig, TrainingConfig, override, read_pipeline, read_run_config
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.cli.options import run_config
from affbench.run.plan import Plan, plan_run

PIPELINES = Path(__file__).parents[2] / "pipelines"
MINIMAL = 'title = "t"\n[[runs]]\nmodel = "capsnet"\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["../runs", "", " ", "..", ".", "/victim", "a\\b", "two\nlines", "x" * 300])
def test_name_that_is_no_folder_of_reports_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.toml").write_text(f'name = {json.dumps(name)}\ntitle = "t"\nruns = [{{ model = "cnn" }}]\n')
    with pytest.raises(UsageError, match=r"p.toml is not valid: it names the folder of the report, so it has no '/'"):
        read_pipeline(tmp_path / "p.toml")


@pytest.mark.parametrize("name", ["all", "All", "sweep-capsnet"])
def test_name_of_a_report_of_another_command_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.toml").write_text('title = "t"\nruns = [{ model = "cnn" }]\n')
    with pytest.raises(
        UsageError, match=rf"name = '{name}' in .* is not valid: .* the reports of 'affbench report' and"
    ):
        read_pipeline(tmp_path / f"{name}.toml")


def test_run_survives_the_way_through_toml(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "model": {"name": "cnn", "options": {"filters": [8, 4], "dropout": 0.25}},
            "data": {"limit": 10, "flip": True},
            "training": {"seed": 3, "schedule": "keras"},
        }
    )
    assert read_run_config(written(tmp_path, config.to_toml())) == config


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[training]\nepoch = 3", r"unknown key 'training.epoch' in .*file.toml: did you mean 'epochs'\?"),
        ("[training]\nepochs = 0", r"training.epochs = 0 in .* is not valid: input should be greater than"),
        (
            '[training]\nprecision = "float23"',
            r"training.precision = 'float23' in .* is unknown: did you mean 'float32'",
        ),
        ("[modell]", r"unknown key 'modell' in .*: did you mean 'model'\?"),
        ("[training", r"is not valid TOML"),
    ],
)
def test_mistake_in_a_run_file_is_one_clear_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        read_run_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (MINIMAL + "routing = 3", r"unknown key 'runs.0.routing' in .*: did you mean 'routings'\?"),
        (MINIMAL + "routings = [1, 0]", r"routings.* = 0 in .* is not valid: input should be greater than or equal"),
        (MINIMAL + "seeds = []", r"seeds = \(?\[?.* is not valid"),
        ('title = "t"', r"lacks the key 'runs'"),
        ("[[runs]]\nmodel = 'cnn'", r"lacks the key 'title'"),
        (MINIMAL + "[evaluation]\nset = 'mnist'", r"did you mean 'sets'\?"),
    ],
)
def test_mistake_in_a_pipeline_is_one_clear_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        read_pipeline(written(tmp_path, text)).expand()


def test_mistake_in_what_a_run_changes_is_found_on_expansion(tmp_path: Path) -> None:
    pipeline = read_pipeline(written(tmp_path, MINIMAL + "training = { epoch = 3 }"))
    with pytest.raises(UsageError, match=r"unknown key 'epoch' in training of \[\[runs\]\] number 1"):
        pipeline.expand()


def test_missing_pipeline_suggests_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PIPELINES.parent)
    with pytest.raises(UsageError, match=r"there is no file .*: did you mean 'pipelines/quickstart.toml'\?"):
        read_pipeline(Path("pipelines/quickstrat.toml"))


def test_pipeline_expands_to_routings_times_seeds_with_seeds_innermost(tmp_path: Path) -> None:
    text = 'title = "t"\nseeds = [4, 5]\n[training]\nepochs = 7\n[[runs]]\nmodel = "capsnet"\nroutings = [1, 3]\n'
    text += 'training = { batch_size = 8 }\n[[runs]]\nmodel = "cnn"\nseeds = 9\n'
    cells = [config for _, config, _ in read_pipeline(written(tmp_path, text)).expand()]
    assert [(c.model.routings, c.training.seed) for c in cells] == [(1, 4), (1, 5), (3, 4), (3, 5), (None, 9)]
    assert {c.training.epochs for c in cells} == {7}
    assert [c.training.batch_size for c in cells] == [8, 8, 8, 8, 128]


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_pipelines_are_valid(path: Path) -> None:
    assert read_pipeline(path).expand()


def test_shipped_sweep_and_ablation_are_the_ones_announced() -> None:
    sweep = [config for _, config, _ in read_pipeline(PIPELINES / "routing-sweep.toml").expand()]
    expected = [(routings, seed) for routings in (1, 2, 3, 5, 7, 10) for seed in (0, 1, 2)]
    assert [(c.model.routings, c.training.seed) for c in sweep] == expected
    ablation = [config for _, config, _ in read_pipeline(PIPELINES / "ablation.toml").expand()]
    rows = {(c.model.routings, c.model.options["reconstruction"]) for c in ablation}
    assert rows == {(1, 0), (3, 0), (1, 0.0005), (3, 0.0005)}
    assert len(ablation) == 12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("False", False), ("false", False), ("True", True), ("None", None), ("none", None), ("inf", math.inf)),
        *(("3", 3), ("0.5", 0.5), ("64,32", [64, 32]), ("relu", "relu"), ('"none"', "none")),
    ],
)
def test_value_of_an_option_has_its_type_and_keeps_it_in_a_file(tmp_path: Path, text: str, value: object) -> None:
    config = run_config(model="a:b", option=[f"given={text}"])
    assert type(config.model.options["given"]) is type(value)
    assert config.model.options["given"] == value
    assert read_run_config(written(tmp_path, config.to_toml())) == config


def test_none_reaches_the_factory_and_infinity_is_not_null_in_a_key(workspace: Workspace, tmp_path: Path) -> None:
    def planned(**options: object) -> Plan:
        model = {"name": f"{__name__}:factory", "options": options}
        return plan_run(override(tiny_config(), model=model), workspace)

    assert read_run_config(written(tmp_path, planned(rate=None).config.to_toml())).model.options == {"rate": None}
    plans = [planned(**options) for options in ({}, {"rate": None}, {"rate": math.inf}, {"rate": math.nan})]
    assert len({plan.key for plan in plans}) == 4
    rates = [plan.recipe.inputs["config"]["model"]["options"]["rate"] for plan in plans]
    assert rates == [0.5, None, "Infinity", "NaN"]


def factory(rate: float | None = 0.5) -> object:
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(1600, 10))


def test_override_changes_only_what_is_given() -> None:
    base = TrainingConfig(epochs=4)
    assert override(base, seed=2, epochs=None) == TrainingConfig(epochs=4, seed=2)
    with pytest.raises(UsageError, match="learning_rate = 2 in the command line is not valid"):
        override(base, learning_rate=2)


def test_pipelines_of_affbench_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_pipeline(Path("quickstart")) == read_pipeline(PIPELINES / "quickstart.toml")
    with pytest.raises(UsageError, match=r"there is no file quickstrat: did you mean 'quickstart'\?"):
        read_pipeline(Path("quickstrat"))
    (tmp_path / "quickstart").write_text(MINIMAL)
    assert read_pipeline(Path("quickstart")).runs != read_pipeline(PIPELINES / "quickstart.toml").runs, "an own file"
