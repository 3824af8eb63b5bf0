"""The speed measurement on models small enough to take a moment: what it holds, not how fast this machine is."""

import csv
import importlib.util
import io
import json
from pathlib import Path

import model_speed
import pytest
import torch
import torch.nn.functional as F
from model_speed import Candidate, CostPoint, Speed, Spread, Workload, benchmark_speed, cost_curves, cost_figure
from rich.console import Console
from torch import nn

from affbench.base.errors import UsageError
from affbench.base.progress import Progress
from affbench.models import build_model, model_names

CPU = torch.device("cpu")
SMALL = {"filters": 4, "primary_types": 2, "decoder": [8]}
TEXTBOOK = Path(__file__).parents[2] / "benchmarks" / "textbook.py"


def workload(model="capsnet", **changes):
    usual = {"options": SMALL, "device": CPU, "precision": "float32", "batch_size": 2}
    return Workload(model, **(usual | changes))


@pytest.fixture(scope="module")
def speed() -> Speed:
    return benchmark_speed(workload(options=SMALL | {"routings": 2}, batch_size=4), repeats=2, textbook=TEXTBOOK)


def test_every_measurement_of_a_capsnet_is_there_and_consistent(speed):
    assert speed.options["routings"] == 2
    document = speed.to_dict()
    assert document["train_images_per_second"] == pytest.approx(4 / speed.times["step"].median)
    assert document["eval_images_per_second"] == pytest.approx(4 / speed.times["evaluation"].median)
    assert set(speed.ratios) == {
        "step_over_floor",
        "step_over_convolutions",
        "textbook_over_step",
        "routing_10_over_1",
    }
    for ratio in speed.ratios.values():
        assert 0 < ratio.low <= ratio.median <= ratio.high


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory on the CPU is read from /proc")
def test_peak_memory_is_that_of_training_not_of_the_process(speed):
    parameters_and_adam = 4 * 4 * speed.parameters
    assert parameters_and_adam / 2 < speed.peak_memory_bytes < 400 * 2**20


def test_the_measurement_is_one_json_document_and_one_table(speed):
    assert json.loads(json.dumps(speed.to_dict(), allow_nan=False))["step"]["median"] == speed.times["step"].median
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(speed.table())
    text = console.export_text()
    for words in (
        "images/s",
        "step / torch's convolutions alone",
        "step / its own convolutions alone",
        "textbook step / step",
        "step with 10 routing iterations /",
    ):
        assert words in text


@pytest.mark.parametrize("name", model_names())
def test_every_network_is_timed_beside_its_own_convolutions(name):
    options = SMALL if name == "capsnet" else {}
    found = model_speed._convolutions(workload(name, options=options).tried(model_speed.SILENT))
    assert "floor" in found
    for action in found.values():
        action()


def test_convolutions_without_a_module_are_timed_as_well():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 1, 5, 3))

        def forward(self, images):
            maps = F.conv2d(F.conv2d(images, self.weight, None, 2, (1, 0)), weight=self.weight, groups=4)
            return maps.mean((2, 3))[:, :1].expand(-1, 10)

    shapes = []
    conv2d = nn.Conv2d.forward

    def counted(module, images):
        shapes.append((tuple(images.shape), tuple(module.weight.shape), images.requires_grad))
        return conv2d(module, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", counted)
        model_speed._convolutions(Candidate(workload(), Called()))["floor"]()
    assert shapes == [((2, 1, 40, 40), (4, 1, 5, 3), False), ((2, 4, 19, 19), (4, 1, 5, 3), True)]


def test_a_cnn_has_a_floor_but_no_routing_and_no_textbook():
    options = {"filters": [4, 4], "hidden": 8}
    speed = benchmark_speed(workload("cnn", options=options), repeats=1)
    assert "routings" not in speed.options
    assert {"step", "evaluation", "floor"} <= set(speed.times)
    assert speed.to_dict()["textbook_over_step"] is speed.to_dict()["routing_10_over_1"] is None


def test_bfloat16_is_measured_in_bfloat16():
    speed = benchmark_speed(workload(precision="bfloat16"), repeats=1)
    assert speed.precision == "bfloat16"


def test_a_textbook_step_without_room_is_left_out_with_a_note(monkeypatch):
    notes = Progress()
    monkeypatch.setattr(notes, "note", lambda text: said.append(text))
    said = []
    monkeypatch.setattr(model_speed, "_free_memory", lambda device: 2**20)
    speed = benchmark_speed(workload(), repeats=1, textbook=TEXTBOOK, progress=notes)
    assert "textbook" not in speed.times
    assert "textbook_over_step" not in speed.ratios
    assert "routing_10_over_1" in speed.ratios
    assert said[0] == "the textbook step is left out: at batch 2 it needs some 0.0 GiB of memory, and 0.0 GiB are free"


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="free memory on the CPU is read from /proc")
def test_free_memory_is_known():
    assert 2**20 < model_speed._free_memory(CPU) < 2**50


def test_the_textbook_computes_the_loss_that_capsnet_computes():
    spec = importlib.util.spec_from_file_location("textbook_of_this_test", TEXTBOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = build_model("capsnet", canvas=28, **SMALL)
    theirs = module.TextbookCapsNet(canvas=28, **SMALL)
    first, _, second = ours.primary.network
    theirs.conv.load_state_dict(first.state_dict())
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    # The textbook cuts the channels-first memory into capsules as it lies: eight neighbouring pixels of one channel.
    # With the second convolution constant over positions and channels, both groupings give the same capsules.
    with torch.no_grad():
        for convolution in (second, theirs.primary):
            convolution.weight.zero_()
            convolution.bias.fill_(0.3)
        theirs.weight.copy_(ours.digits.matrices.transpose(0, 1))
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([3, 0, 9])
    torch.testing.assert_close(theirs.loss(images, labels), ours.loss(images, labels))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"routings": 0}}, "routings"),
        ({"textbook": Path("nowhere.py")}, "nowhere.py"),
    ],
)
def test_bad_arguments_are_named(change, words):
    change = dict(change)
    textbook = change.pop("textbook", None)
    with pytest.raises(UsageError, match=words):
        benchmark_speed(workload(**change), repeats=1, textbook=textbook)


def test_models_from_outside_are_tried_first(tmp_path, monkeypatch):
    (tmp_path / "timed_of_a_test.py").write_text(
        "from torch import nn\n"
        "def lazy(classes=10): return nn.Sequential(nn.LazyConv2d(2, 9), nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert benchmark_speed(workload("timed_of_a_test.py:lazy", options={}), repeats=1).parameters == 20654
    with pytest.raises(UsageError, match=r"must return class scores \(2, 10\), not \(2, 9\)"):
        benchmark_speed(workload("timed_of_a_test.py:lazy", options={"classes": 9}), repeats=1)


def test_a_textbook_file_that_fails_is_named(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no')")
    with pytest.raises(UsageError, match=r"broken\.py:TextbookCapsNet' cannot be imported \(RuntimeError: no"):
        benchmark_speed(workload(), repeats=1, textbook=broken)


def test_cost_curves_vary_one_thing_at_a_time():
    curves = {"routings": (1, 2), "batch_size": (2,), "canvas": (28,)}
    points = cost_curves(workload(), curves=curves, repeats=1)
    assert [(point.varied, point.value) for point in points] == [
        ("routings", 1),
        ("routings", 2),
        ("batch_size", 2),
        ("canvas", 28),
    ]
    assert all(point.images_per_second.median > 0 for point in points)


def test_cost_curves_agree_where_they_meet():
    curves = {"routings": (3,), "batch_size": (2,), "canvas": (40,)}
    points = cost_curves(workload(), curves=curves, repeats=2)
    assert len(points) == 3
    assert len({point.images_per_second for point in points}) == 1


def test_a_model_without_routing_has_no_curve_over_iterations():
    options = {"filters": [4, 4], "hidden": 8}
    curves = {"routings": (1, 2), "batch_size": (2,), "canvas": (28,)}
    points = cost_curves(workload("cnn", options=options), curves=curves, repeats=1)
    assert [point.varied for point in points] == ["batch_size", "canvas"]


def test_cost_figure_comes_with_its_data(tmp_path):
    points = [CostPoint("routings", n, Spread(100.0 / n, 90.0 / n, 110.0 / n)) for n in (1, 3, 10)]
    points += [CostPoint("canvas", n, Spread(50.0, 49.0, 51.0)) for n in (28, 40)]
    path = cost_figure(points, tmp_path / "cost.png", "capsnet on some device")
    assert path.read_bytes().startswith(b"\x89PNG")
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["varied"], row["value"]) for row in rows[:3]] == [
        ("routings", "1"),
        ("routings", "3"),
        ("routings", "10"),
    ]
    assert float(rows[1]["images_per_second_median"]) == pytest.approx(100 / 3, rel=1e-5)
