"""What a model is, as its own docstring says: what it does, its paper, and its options."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch

from affbench.models.registry import build_model, model_factory, model_options, parameter_count


@dataclass(frozen=True)
class Option:
    """An option of a model."""

    name: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class ModelCard:
    """A model with its default options, on a 40×40 canvas."""

    name: str
    summary: str
    paper: str  # "" where it names none
    parameters: int
    options: tuple[Option, ...]


def model_card(name: str) -> ModelCard:
    """Describe a model; raises as :func:`affbench.build_model`."""
    factory = model_factory(name)
    heading, *parts = re.split(r"\n([A-Z]\w+)\n-{3,}\n", _plain(inspect.getdoc(factory) or ""))
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    meanings: dict[str, str] = {}
    for names, text in re.findall(r"^(\S.*)\n((?:[ ]+\S.*\n?|\n)*)", sections.get("Parameters", ""), re.MULTILINE):
        own, text = names.partition(" : ")[0].split(", "), " ".join(text.split())
        parts = [f"{part[:1].upper()}{part[1:].rstrip('.')}." for part in text.split("; ")]  # one for each, if so many
        meanings |= zip(own, parts if len(parts) == len(own) else [text] * len(own), strict=True)
    parameters = inspect.signature(factory).parameters
    options = tuple(
        Option(option, _type(parameters[option].annotation), default, meanings.get(option, ""))
        for option, default in model_options(name).items()
    )
    with torch.device("meta"):
        count = parameter_count(build_model(name))
    paper = " ".join(sections.get("References", "").split())
    return ModelCard(name, heading.partition("\n\n")[0].replace("\n", " "), paper, count, options)


def _plain(doc: str) -> str:
    """A docstring without the marks of reStructuredText."""
    return re.sub(r":\w+:`(?:\w+\.)*(\w+)`", r"\1", doc).replace("``", "")


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
