from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Affbench
from torch import Tensor, nn

from affbench.base.config import ModelConfig
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import load_dataset
from affbench.models.registry import build_model
from affbench.run.elsewhere import adopt, keep, read_weights
from affbench.run.evaluate import evaluate
from affbench.run.folder import WEIGHTS, Run, runs_dir

AFFINE = "affnist-synthetic-sample"
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 2):
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(1, width, 9, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
        self.module[3] = nn.Linear(64 * width, 10)

    def forward(self, images):
        return self.module(images)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "phd.py"
    path.write_text(NET)
    return f"{path}:Net"


def trained(net: str, width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_model(net, width=width)


def test_state_dicts_are_read_however_training_scripts_save_them(
    net: str, tmp_path: Path, workspace: Workspace
) -> None:
    state = trained(net).state_dict()
    saved: dict[str, object] = {
        "plain.pt": state,
        "lightning.ckpt": {"state_dict": state, "epoch": 3},
        "timm.pth": {"model": state},
        "parallel.pt": {"model": {f"module.{name}": value for name, value in state.items()}},
        "compiled.pt": {f"_orig_mod.module.{name}": value for name, value in state.items()},
    }
    for name, content in saved.items():
        torch.save(content, tmp_path / name)
    save_file(state, tmp_path / "own.safetensors")
    config = ModelConfig(name=net, options={"width": 3})
    runs = {adopt(config, read_weights(tmp_path / name), workspace).path for name in (*saved, "own.safetensors")}
    (path,) = runs
    assert path.name.startswith("phd.py-Net-elsewhere-")
    kept = load_file(path / WEIGHTS)
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], value) for name, value in state.items())


def test_a_network_that_waits_for_its_first_images_is_completed(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "lazy.py"
    path.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))\n")
    config, fitting, other = ModelConfig(name=f"{path}:make"), nn.Linear(1600, 10), nn.Linear(784, 10)
    run = adopt(config, nn.Sequential(nn.Flatten(), fitting).state_dict(), workspace)
    assert run.environment.parameters == 16_010
    with pytest.raises(UsageError, match=r"size mismatch for 1\.weight"):
        adopt(config, nn.Sequential(nn.Flatten(), other).state_dict(), workspace)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (Evil(), "holds more than weights, which would mean running code from it"),
        (nn.Linear(2, 2), "holds more than weights"),
        ({"epoch": 3}, "holds no state dict, neither by itself nor under state_dict, model, model_state_dict"),
        ([torch.zeros(2)], "holds no state dict"),
    ],
)
def test_files_that_hold_something_else_are_refused_and_run_nothing(
    content: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pt")
    with pytest.raises(UsageError, match=says):
        read_weights(Path("weights.pt"))
    assert not Path("ran").exists()


def test_files_that_are_damaged_or_absent_are_told(tmp_path: Path) -> None:
    for name, says in (("gone.pt", "No such file"), ("gone.safetensors", "cannot be read"), ("noise.pt", "is damaged")):
        (tmp_path / "noise.pt").write_bytes(b"noise")
        with pytest.raises(UsageError, match=says):
            read_weights(tmp_path / name)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


def test_weights_of_another_network_are_told_by_name(net: str, workspace: Workspace) -> None:
    config, state = ModelConfig(name=net, options={"width": 3}), trained(net).state_dict()
    for weights, says in (
        (without(state, "module.3.bias"), 'Missing key(s) in state_dict: "module.3.bias"'),
        (state | {"head.bias": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "head.bias"'),
        (trained(net, width=4).state_dict(), "size mismatch for module.0.weight"),
    ):
        with pytest.raises(UsageError) as told:
            adopt(config, weights, workspace)
        assert says in str(told.value)
        assert "elsewhere.py" not in str(told.value)  # no line of affbench's own
    assert not runs_dir(workspace.results).exists()


def test_own_networks_stand_beside_trained_ones(
    net: str, affbench: Affbench, workspace: Workspace, tmp_path: Path
) -> None:
    model = trained(net)
    torch.save(model.state_dict(), tmp_path / "phd.pt")
    own = ("--model", net, "-o", "width=3", "--weights", str(tmp_path / "phd.pt"))
    first = json.loads(affbench("eval", *own, "--set", AFFINE, "--limit", "200", "--json").stdout)
    expected = evaluate(model.eval(), load_dataset(AFFINE, limit=200, data_dir=workspace.data))
    assert (first["n"], first["correct"], first["seed"]) == (200, expected.correct, 0)
    again = json.loads(affbench("eval", *own, "--set", AFFINE, "--limit", "200", "--json").stdout)
    assert again["evaluations"] == 1  # answered from disk
    train = ("train", "--model", "cnn", "-o", "filters=4,4", "-o", "hidden=8", "--train-set", "mnist-translated-sample")
    assert affbench(*train, "--limit", "64", "--epochs", "1", "--device", "cpu").status == 0
    assert affbench("eval", "--set", AFFINE, "--limit", "200").status == 0
    (row,) = [run for run in json.loads(affbench("status", "--json").stdout)["runs"] if run["name"] == first["run"]]
    assert (row["state"], row["validation_accuracy"]) == ("trained elsewhere", None)
    (board,) = json.loads(affbench("leaderboard", "--set", AFFINE, "--json").stdout)["leaderboards"]
    assert {row["run"]: row["origin"] for row in board["rows"]}[first["run"]] == "elsewhere"
    report = json.loads(affbench("report", "--json").stdout)
    page = Path(report["markdown"]).read_text()
    assert "trained elsewhere" in page
    assert f"Trained elsewhere, in a way that affbench does not know: {net}" in page.replace("\\", "")
    pairs = (Path(report["markdown"]).parent / "tables" / f"pair-by-pair-{AFFINE}.csv").read_text()
    assert net in pairs
    assert "cnn" in pairs
    (board,) = json.loads(affbench("leaderboard", "--set", AFFINE, "--json").stdout)["leaderboards"]
    assert first["run"] in json.dumps(board)


def test_model_and_weights_go_together(affbench: Affbench) -> None:
    for options in (("--model", "cnn"), ("--weights", "x.pt"), ("--model", "cnn", "--weights", "x.pt", "--run", "cnn")):
        ended = affbench("eval", *options)
        assert ended.status == 2
        assert "--model and --weights go together, and without --run" in ended.stderr


def test_an_evaluation_from_python_is_kept_with_its_network(net: str, workspace: Workspace) -> None:
    model, dataset = trained(net), load_dataset(AFFINE, limit=300, data_dir=workspace.data)
    result = evaluate(model, dataset)
    where = {"data_dir": workspace.data, "results_dir": workspace.results}
    name = keep(result, model, net, limit=300, width=3, **where)  # type: ignore[arg-type]
    record = Run(runs_dir(workspace.results) / name).evaluations[AFFINE]
    assert (record.n, record.correct, record.limit, record.copies) == (300, result.correct, 300, 32)
    with pytest.raises(UsageError, match="the evaluation is of 300 images of 'affnist-synthetic-sample', but these"):
        keep(result, model, net, width=3, **where)  # type: ignore[arg-type]
    torch.nn.init.zeros_(next(model.parameters()))
    with pytest.raises(UsageError, match="answers otherwise than the evaluation says"):
        keep(result, model, net, limit=300, width=3, **where)  # type: ignore[arg-type]
