"""Models by name: built in, from an installed package, from any module; and what is said when that fails."""

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import affbench
from affbench.base.errors import UsageError
from affbench.models import build_model, model_names, model_options, parameter_count
from affbench.models.registry import check_model, model_code

MODULE = """
from torch import nn

class Linear(nn.Module):
    def __init__(self, canvas, bias=True):
        super().__init__()
        self.layer = nn.Linear(canvas * canvas, 10, bias=bias)

    def forward(self, images):
        return self.layer(images.flatten(1))

class Factories:
    @staticmethod
    def nested(width):
        return nn.Linear(width, 10)

def anything(**options):
    return Linear(options["canvas"], options.get("bias", True))

def number(): return 7
def broken(): raise RuntimeError("out of luck")
constant = 3
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of somebody else on the path, with an installed entry point 'their-model'."""
    (tmp_path / "their_models.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "their_failure.py").write_text("raise ImportError('no such library')")
    info = tmp_path / "their_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[affbench.models]\ntheir-model = their_models:Linear\ncnn = their_models:Linear\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("their_models", None)


def test_a_model_is_named_in_the_registry_alone():
    """So that a new one touches its own file and the registry."""
    package = Path(affbench.__file__).parent
    named = {name for name in model_names() if "-" in name}
    others = [path for path in package.rglob("*.py") if path != package / "models" / "registry.py"]
    assert [path for path in others if any(name in path.read_text() for name in named)] == []


def test_built_in_models_are_listed_with_their_options():
    assert model_names()[:6] == ("capsnet", "cnn", "cnn-sabour", "aff-capsnet", "cnn-gap", "stn-cnn")
    options = model_options("capsnet")
    assert options["routings"] == 3
    assert options["routing_gradient"] == "last"
    assert "canvas" not in options


@pytest.mark.parametrize(("name", "suggestion"), [("capsnett", "capsnet"), ("cnn-sabur", "cnn-sabour"), ("Cnn", "cnn")])
def test_unknown_model_suggests_the_nearest(name, suggestion):
    with pytest.raises(UsageError, match=f"unknown model '{name}': did you mean '{suggestion}'"):
        build_model(name)


def test_unknown_model_that_is_near_nothing_lists_all():
    with pytest.raises(UsageError, match="aff-capsnet, capsnet, cnn, cnn-avg, cnn-fc, cnn-gap, cnn-sabour, eff"):
        build_model("transformer")


def test_unknown_option_suggests_the_nearest():
    with pytest.raises(UsageError, match="no option 'routing': did you mean 'routings'"):
        build_model("capsnet", routing=3)
    with pytest.raises(UsageError, match="no option 'routings'"):
        build_model("cnn", routings=3)


def test_a_model_of_an_installed_package_is_built_by_its_name(outside):
    assert "their-model" in model_names()
    model = build_model("their-model", canvas=5, bias=False)
    assert parameter_count(model) == 250
    assert model(torch.rand(2, 1, 5, 5)).shape == (2, 10)


def test_a_package_cannot_replace_a_built_in_model(outside):
    assert type(build_model("cnn", canvas=16, filters=[1, 1], hidden=1)).__module__ == "affbench.models.cnn"
    assert model_names().count("cnn") == 1


def test_a_model_is_built_from_module_and_factory(outside):
    assert build_model("their_models:Linear", canvas=4)(torch.rand(1, 1, 4, 4)).shape == (1, 10)
    assert build_model("their_models:Factories.nested", width=3).in_features == 3
    assert build_model("their_models:anything", canvas=4, bias=False).layer.bias is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("their_models:missing", "cannot be imported"),
        ("nowhere.at.all:Model", "cannot be imported"),
        ("their_failure:Model", "no such library"),
        ("their_models:constant", "not callable"),
        ("their_models:number", "must return a torch.nn.Module, not int"),
        ("their_models:broken", "out of luck"),
        ("their_models:Factories.nested", "needs a value for its option 'width'"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named_with_the_reason(outside, name, words):
    with pytest.raises(UsageError, match=words) as caught:
        build_model(name)
    assert name in str(caught.value)


def test_an_option_a_factory_does_not_have_is_refused(outside):
    with pytest.raises(UsageError, match="'Bias': did you mean 'bias'"):
        build_model("their-model", canvas=4, Bias=True)
    with pytest.raises(UsageError, match="it has none"):
        build_model("their_models:number", width=2)


def test_trainable_parameters_alone_are_counted():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert parameter_count(model) == 6


def test_names_are_listed_without_importing_torch():
    code = "import sys; from affbench.models import model_names; model_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


STRANGE = """
import argparse, sys, numpy as np, torch
from torch import nn

print("hello from the module")
arguments = argparse.ArgumentParser().parse_args()

class Net(nn.Module):
    def __init__(self, name="net", width=4, norm=nn.BatchNorm1d):
        super().__init__()
        self.name, self.norm = name, norm(width)
        self.scale = torch.linspace(1, 2, width)[1].item() + float(torch.ones(1).numpy()[0])

def passes_on(**options):
    return Net(**options)

def broken(**options):
    raise TypeError("no such thing")

built = Net()
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    (tmp_path / "strange_file_of_a_test.py").write_text(STRANGE)
    (tmp_path / "strange_script_of_a_test.py").write_text("import sys\nsys.exit('use it as a script')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "argv", ["affbench", "train", "--model", "…"])
    yield tmp_path
    for name in ("strange_file_of_a_test", "strange_script_of_a_test"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "where", ["strange_file_of_a_test", "strange_file_of_a_test.py", "./strange_file_of_a_test.py"]
)
def test_a_module_or_file_of_the_current_folder_is_found(strange, where):
    assert build_model(f"{where}:Net", width=3).norm.num_features == 3
    assert model_code(f"{where}:Net") == model_code("strange_file_of_a_test:Net") != model_code("capsnet")


def test_a_file_called_like_an_imported_module_is_still_that_file(strange):
    (strange / "torch.py").write_text("from torch import nn\ndef make(): return nn.Linear(7, 10)")
    assert build_model("torch.py:make").in_features == 7
    assert build_model("torch.py:make").in_features == 7
    assert sys.modules["torch"] is torch


def test_a_factory_that_passes_everything_on_gets_the_canvas_only_where_it_is_known(strange):
    assert build_model("strange_file_of_a_test:passes_on", width=5).norm.num_features == 5
    with pytest.raises(UsageError, match=r"cannot be built: TypeError: no such thing \(strange_file"):
        build_model("strange_file_of_a_test:broken")


def test_an_option_may_be_called_name(strange):
    assert build_model("strange_file_of_a_test:Net", name="mine").name == "mine"


def test_checking_a_model_builds_it_for_real_and_once(strange, monkeypatch):
    check_model("strange_file_of_a_test:Net", 40, {"width": 6})
    monkeypatch.setattr("affbench.models.registry.build_model", None)
    check_model("strange_file_of_a_test:Net", 40, {"width": 6})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "strange_script_of_a_test:Net",
            r"SystemExit: use it as a script \(.*line 2\)\); what runs as a script belongs",
        ),
        ("strange_file_of_a_test:built", "is built already"),
        ("strange_file_of_a_test.py", "write strange_file_of_a_test.py:factory"),
        ("nowhere.py:Net", "FileNotFoundError: there is no file nowhere.py"),
        ("builtins:dict", "must return a torch.nn.Module, not dict"),
    ],
)
def test_what_is_no_factory_is_one_sentence(strange, name, words):
    with pytest.raises(UsageError, match=words):
        build_model(name)


def test_networks_of_timm_take_one_channel_and_tell_ten_classes():
    images = torch.rand(2, 1, 40, 40)
    assert parameter_count(build_model("timm:resnet18")) == 11_175_370  # one channel and ten classes
    assert build_model("timm:vit_tiny_patch16_224", patch_size=8, depth=1)(images).shape == (2, 10)
    assert len(model_code("timm:resnet18")) == 64
    for name, options, words in (
        ("timm:resnet81", {}, "timm has no network 'resnet81': did you mean"),
        ("timm:vit_tiny_patch16_224", {}, "cuts 40×40 images: give -o patch_size=8"),
        ("timm:resnet18", {"pretrained": True}, "is to be trained on translated digits only"),
        ("timm:resnet18", {"widht": 3}, "cannot be built"),
    ):
        with pytest.raises(UsageError, match=words):
            build_model(name, **options)


def test_without_timm_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm: pip install 'affbench\[timm\]'"):
        build_model("timm:resnet18")
