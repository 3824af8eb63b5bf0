"""The comparison of a device with float64 and the CPU, on the CPU: that all is well, and that it would notice."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "correctness.py"
CPU = torch.device("cpu")


@pytest.fixture
def correctness(monkeypatch):
    spec = importlib.util.spec_from_file_location("correctness_of_this_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {name: {"filters": 4, "primary_types": 2} for name in ("capsnet", "aff-capsnet")}
    small |= {name: {"filters": [4, 4], "hidden": 8} for name in ("cnn", "cnn-gap", "stn-cnn")}
    monkeypatch.setattr(module, "NETWORKS", small)
    return module


def test_the_cpu_computes_what_it_should(correctness, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["correctness.py", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        correctness.main()
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0, lines
    assert lines[-1] == "all as it should be"
    for part in ("routing 10, gradient all", "stn-cnn, gradient in float32", "10 steps", "after 2 epochs"):
        assert any(part in line for line in lines)


def test_wrong_routing_is_noticed(correctness, monkeypatch):
    right = correctness.dynamic_routing
    monkeypatch.setattr(correctness, "dynamic_routing", lambda u, w, n, gradient: right(u, w, n + 1, gradient))
    assert any(difference > bound for _, difference, bound in correctness.routing(CPU))


def test_a_wrong_step_is_noticed(correctness, monkeypatch):
    def other(model, *given):
        for parameter in model.parameters():
            parameter.data.mul_(3)
        return correctness.Step(model, *given)

    monkeypatch.setattr(correctness, "make_step", other)
    assert all(difference > bound for _, difference, bound in correctness.steps(CPU))


@pytest.mark.parametrize("works", [True, False])
def test_a_step_that_is_not_replayed_is_noticed(correctness, monkeypatch, works):
    def capture(device, run):
        if not works:
            raise RuntimeError("operation not permitted when stream is capturing")
        return run

    monkeypatch.setattr("affbench.run.step.capture_on_cuda", capture)
    monkeypatch.setattr(correctness, "make_step", correctness.CapturedStep)
    warned = contextlib.nullcontext() if works else pytest.warns(RuntimeWarning, match="cannot be recorded")
    with warned:
        found = list(correctness.steps(CPU))
    assert [difference <= bound for _, difference, bound in found] == [True, works, True, works]


def test_what_is_not_a_number_is_wrong(correctness, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["correctness.py", "--device", "cpu"])
    for part in ("networks", "steps"):
        monkeypatch.setattr(correctness, part, lambda *_: [])
    monkeypatch.setattr(correctness, "curves", lambda *_: [])
    monkeypatch.setattr(correctness, "routing", lambda *_: [("routing", float("nan"), 1.0)])
    with pytest.raises(SystemExit) as ended:
        correctness.main()
    assert ended.value.code == 1
    assert "1 comparisons are out of bounds" in capsys.readouterr().out
