"""What affbench says to models that do not keep its contract, before it trains them; and unusual ones that train."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import SAMPLE, TINY_CNN, Affbench, tiny_config

import affbench as package
from affbench.base.config import RunConfig, override
from affbench.base.errors import DeviceError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import find_part
from affbench.run import train as training
from affbench.run.folder import WEIGHTS, list_runs
from affbench.run.plan import plan_run
from affbench.run.record import evaluate_run
from affbench.run.train import train

MODULE = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, inputs=1600, dtype=None):
        super().__init__()
        self.layer = nn.Linear(inputs, classes, dtype=dtype)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Pair(Net):
    def forward(self, x): return super().forward(x), x

class Dict(Net):
    def forward(self, x): return {"logits": super().forward(x)}

class Capsules(Net):
    def __init__(self): super().__init__(160)
    def forward(self, x): return super().forward(x).view(-1, 10, 16)

class Complex(Net):
    def __init__(self): super().__init__(dtype=torch.complex64)
    def forward(self, x): return super().forward(x.to(torch.complex64)).abs()

class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

class NoParameters(nn.Module):
    def forward(self, x): return x.flatten(1)[:, :10]

class Detached(Net):
    def forward(self, x): return super().forward(x).detach() * 2

class LossOfOutput(Net):
    def loss(self, output, target): return F.cross_entropy(output, target)

class LossOfFour(Net):
    def loss(self, data, x, target, reconstruction): return F.cross_entropy(x, target)

class LossModule(Net):
    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

class LossPerImage(Net):
    def loss(self, images, labels): return F.cross_entropy(self(images), labels, reduction="none")

class ExtraState(Net):
    def get_extra_state(self): return {"steps": 3}
    def set_extra_state(self, state): pass

class Norm(Net):
    def __init__(self):
        super().__init__(8)
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 10))
    def forward(self, x): return self.head(super().forward(x))

class Exits(Net):
    def forward(self, x): raise SystemExit("no more")

class OddError(Net):
    def forward(self, x): raise KeyError("missing")

class LaterError(Net):
    def forward(self, x):
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps == 3: raise LookupError("third step")
        return super().forward(x)

class TooLarge(Net):
    def forward(self, x):
        if len(x) > 2: raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.5 GiB")
        return super().forward(x)

class Grows(Net):
    def forward(self, x):
        self.register_buffer("seen", x.sum((1, 2, 3)) if self.training else torch.zeros(1))
        return super().forward(x)

class ThreeChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 10, 40)
    def forward(self, x): return self.layer(x).flatten(1)

one = Net()
def same(): return one

# What works:

class HalfFrozen(Net):
    def __init__(self):
        super().__init__(8)
        self.requires_grad_(False)
        self.head = nn.Linear(8, 10)
    def forward(self, x): return self.head(super().forward(x))

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 9), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))
    def forward(self, x): return self.layers(x)

class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = [nn.Linear(1600, 8)], nn.Linear(8, 10)
    def forward(self, x): return self.head(self.layers[0](x.flatten(1)) + torch.zeros(8, requires_grad=True))

class LazyByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(1600, 8), None
    def forward(self, x):
        x = self.layer(x.flatten(1))
        if self.head is None: self.head = nn.Linear(x.shape[1], 10)
        return self.head(x)

def numbers(norm=nn.BatchNorm1d, name="x", scale=torch.tensor([2.0]).item(), **rest):
    print("built", name, *rest)
    net = Norm()
    net.layer.weight.data *= float(np.asarray(net.layer.weight.detach()).std() * torch.ones(2).tolist()[0]) * scale
    return net
"""
NAME = "strangers_of_a_test"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda factory, options=None, **changes: override(
        tiny_config(**changes), model={"name": f"{NAME}:{factory}", "options": options or {}}
    )
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        ("Pair", {}, r"must return class scores \(2, 10\), not a tuple of 2: return the scores alone"),
        ("Dict", {}, r"not a dict with 'logits': return the scores alone"),
        ("Capsules", {}, r"not \(2, 10, 16\): lengths of capsules, .norm\(dim=-1\), are scores"),
        (
            "Net",
            {"classes": 9},
            r"must return class scores \(2, 10\), not \(2, 9\): a real number for each of 10 classes",
        ),
        ("Net", {"classes": 1000}, r"not \(2, 1000\): a real number for each of 10 classes"),
        ("Net", {"inputs": 784}, r"cannot take the 40×40 images .*, float32 \(2, 1, 40, 40\): RuntimeError: mat1 and"),
        ("ThreeChannels", {}, r"float32 \(2, 1, 40, 40\): RuntimeError: .*to have 3 channels"),
        ("Complex", {}, "has complex parameters, which affbench does not train"),
        ("Frozen", {}, r"the model has no parameter to train \(2 are frozen, requires_grad is False\)"),
        ("NoParameters", {}, r"the model has no parameter to train \(0 are frozen"),
        ("Detached", {}, "loss depends on no parameter that is trained"),
        ("LossOfOutput", {}, r"Its loss was called as loss\(images, labels\) and must return a scalar"),
        ("LossOfFour", {}, r"Its loss was called as loss\(images, labels\)"),
        ("LossModule", {}, r"Its loss was called as loss\(images, labels\)"),
        ("LossPerImage", {}, r"must return a scalar tensor, the mean over the batch, not \(2,\)"),
        ("ExtraState", {}, r"the model's state holds '_extra_state' \(get_extra_state"),
        ("Exits", {}, r"SystemExit: no more \(strangers_of_a_test.py, line \d+\)"),
        ("OddError", {}, r"KeyError: 'missing' \(strangers_of_a_test.py, line \d+\)"),
        ("Grows", {}, "the model's 'seen' is made, or changes its shape, in training"),
        ("same", {}, "returned the same network twice"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_before_anything_is_written(
    config: Any, workspace: Workspace, factory: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        train(config(factory, options), workspace)
    assert list_runs(workspace.results) == []


def test_double_precision_is_named(config: Any, workspace: Workspace) -> None:
    (Path(sys.path[0]) / "double_of_a_test.py").write_text(
        f"from {NAME} import Net\ndef make(): return Net().double()\n"
    )
    with pytest.raises(UsageError, match=r"its parameters are float64: call .float\(\) on it"):
        train(override(config("Net"), model={"name": "double_of_a_test:make"}), workspace)


def test_last_batch_of_one_image_is_said_before_the_first(config: Any, workspace: Workspace) -> None:
    data = {"train_set": SAMPLE, "limit": 97}
    with pytest.raises(UsageError, match=r"on a single image.* another --batch-size or --limit\): .*more than 1 value"):
        train(override(config("Norm"), data=data), workspace)
    train(override(config("Net"), data=data), workspace)


@pytest.mark.parametrize("factory", ["HalfFrozen", "Lazy", "LazyByHand", "numbers"])
def test_unusual_models_train_are_tested_and_go_on(config: Any, workspace: Workspace, factory: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", "Lazy modules are a new feature")
        run = train(config(factory), workspace)
    record = evaluate_run(run, find_part(SAMPLE, limit=200), workspace)
    assert record.n == 200
    assert run.environment.parameters > 80


def test_layers_in_a_list_are_said_to_stay_untrained(config: Any, affbench: Affbench) -> None:
    options = ("--train-set", SAMPLE, "--limit", "64", "--epochs", "1", "--device", "cpu")
    ended = affbench("train", "--model", f"{NAME}:Listed", *options)
    assert ended.status == 0
    assert "warning: 12,808 numbers that take part in the loss are no parameters" in " ".join(ended.stderr.split())
    assert "warning" not in affbench("train", "--model", f"{NAME}:HalfFrozen", *options).stderr


def test_only_modules_are_evaluated() -> None:
    with pytest.raises(UsageError, match=r"a torch.nn.Module, not a function"):
        package.evaluate(lambda images: images, package.load_dataset(SAMPLE, limit=2))  # type: ignore[arg-type]


def test_error_in_a_later_step_names_the_step(config: Any, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"epoch 1, batch 3 of 32 images: LookupError: third step \(strangers_of_a"):
        train(config("LaterError"), workspace)


def test_memory_that_runs_out_is_one_sentence(config: Any, workspace: Workspace) -> None:
    sentence = r"too little memory for {}: take a smaller batch \(--batch-size, batch_size in Python\)"
    with pytest.raises(DeviceError, match=sentence.format("the training step in epoch 1, batch 1 of 32 images")):
        train(config("TooLarge"), workspace)
    model = package.build_model(f"{NAME}:TooLarge")
    dataset = package.load_dataset(SAMPLE, limit=70)
    with pytest.raises(DeviceError, match=sentence.format(f"a batch of 64 images of '{SAMPLE}'")):
        package.evaluate(model, dataset, batch_size=64)


def test_the_trial_leaves_no_trace_in_the_weights(
    config: Any, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(which: RunConfig, where: str) -> dict[str, torch.Tensor]:
        folder = train(which, Workspace(workspace.data, tmp_path / where, "cpu")).path
        return {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}

    for which in (
        config("Norm"),
        tiny_config(),
        override(tiny_config(), model={"name": "cnn", "options": TINY_CNN}),
    ):
        tried = trained(which, "tried")
        with monkeypatch.context() as without:
            without.setattr(training, "try_model", lambda build, *_: build)
            plain = trained(which, "plain")
        assert all(torch.equal(tried[name], plain[name]) for name in plain)


def test_what_a_model_prints_never_reaches_the_document(config: Any, affbench: Affbench) -> None:
    ended = affbench(
        *("train", "--model", f"{NAME}:numbers", "--train-set", SAMPLE, "--limit", "64", "--epochs", "1", "--json"),
        *("--device", "cpu"),
    )
    assert ended.document["epochs"] == 1
    assert "built x" in ended.stderr


def test_plans_of_models_that_print_are_made_once(config: Any, workspace: Workspace, capsys: Any) -> None:
    plan_run(config("numbers", {"name": "once"}), workspace)
    plan_run(config("numbers", {"name": "once"}), workspace)
    assert capsys.readouterr().out == "built once canvas\n"
