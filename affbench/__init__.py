"""affbench: does a model trained only on translated digits recognise digits under affine transformations?

>>> import affbench
>>> model = affbench.build_model("capsnet", routings=3, canvas=40)
>>> dataset = affbench.load_dataset("mnist-translated-sample", split="test")
>>> affbench.evaluate(model, dataset).n
1000
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from affbench.base.version import __version__

if TYPE_CHECKING:
    from affbench.data.sets import load_dataset
    from affbench.experiment.benchmark import benchmark, load_model
    from affbench.models import build_model
    from affbench.run.elsewhere import keep
    from affbench.run.evaluate import evaluate

__all__ = ["__version__", "benchmark", "build_model", "evaluate", "keep", "load_dataset", "load_model"]

# Loaded on first use: importing affbench, as every command does, must not take the seconds that torch takes.
_HOMES = {
    "benchmark": "affbench.experiment.benchmark",
    "build_model": "affbench.models",
    "evaluate": "affbench.run.evaluate",
    "keep": "affbench.run.elsewhere",
    "load_dataset": "affbench.data.sets",
    "load_model": "affbench.experiment.benchmark",
}
_PACKAGES = ("data", "models", "report", "analysis")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return import_module(f"affbench.{name}")
    raise AttributeError(f"module 'affbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PACKAGES})
