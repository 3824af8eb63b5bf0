"""What an experiment is: validated, frozen, read from TOML, overridable from the command line.

A *run* (``affbench train --config``, and ``config.toml`` in every run folder) has the tables ``[model]``, ``[data]``
and ``[training]``; a *pipeline* (``affbench run``) also ``[evaluation]`` and ``[[runs]]``, which it expands to runs.
"""

import itertools
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from affbench.base.errors import UsageError, nearest

Precision = Literal["auto", "float32", "bfloat16"]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _named_values(options: Any) -> Any:
    """Options in which Python's names of values are these values: TOML writes true and false, and has no None."""
    named = {"True": True, "False": False, "None": None}
    if not isinstance(options, dict):
        return options
    return {key: named.get(value, value) if isinstance(value, str) else value for key, value in options.items()}


def _folder_name(name: str) -> str:
    """A name that becomes a folder: one that stays where it is put, and whose temporary name fits as well."""
    stays = name.strip() and re.fullmatch(r"(?!\.)[^/\\\x00-\x1f\x7f]+", name)
    others = name.casefold() == "all" or name.casefold().startswith("sweep-")
    if not stays or others or len(os.fsencode(name)) > 200:
        raise PydanticCustomError(
            "folder_name",
            "It names the folder of the report, so it has no '/', '\\' or line break, no dot at its beginning, and "
            "1 to 200 bytes; 'all' and 'sweep-…' are the reports of 'affbench report' and 'affbench sweep'",
        )
    return name


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], BeforeValidator(_as_list), Field(min_length=1)]
Routings = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_as_list), Field(min_length=1)]
Accuracies = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_as_list)]


class _Frozen(BaseModel):
    # Infinity and NaN are written by name: as null they would be what is not given.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ModelConfig(_Frozen):
    """Which model: a registered name or ``package.module:factory``, and the options of its factory."""

    name: str = "capsnet"
    options: Annotated[dict[str, Any], BeforeValidator(_named_values)] = Field(default_factory=dict)

    @property
    def routings(self) -> int | None:
        """Routing iterations; None for a model without routing."""
        value = self.options.get("routings")
        return value if isinstance(value, int) else None


class DataConfig(_Frozen):
    """What a model is trained on; the descriptions are the help of the options that the command line makes of these."""

    train_set: str = Field(default="mnist-translated", description="Set to train on; its validation split selects.")
    shift: int | None = Field(
        default=None,
        ge=0,
        le=40,
        description="Random shift in pixels, afresh in every epoch; by default what the set stands for.",
    )
    flip: bool = Field(default=False, description="Mirror half of the training images left to right.")
    limit: int | None = Field(default=None, ge=1, description="Train on the first N examples only.")
    validation_limit: int | None = Field(
        default=None,
        ge=1,
        description="Validate on the first N images only; by default a fifth of the trained ones, at least 500.",
    )
    copies: int = Field(default=1, ge=1, le=1000, description="Versions of each digit of a synthetic affine set.")


class TrainingConfig(_Frozen):
    """How a model is trained; Adam's other parameters are the paper's TensorFlow's (β 0.9, 0.999; ε 1e-8).

    Schedules stand in `affbench.run.stopping.SCHEDULES`. Precision ``"bfloat16"`` computes convolutions and fully
    connected layers under autocast, ``"auto"`` takes it where the device computes in it.
    """

    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of weights, order, placement and dropout.")
    epochs: int = Field(default=30, ge=1, description="Epochs to train.")
    batch_size: int = Field(default=128, ge=1, description="Images a step.")
    learning_rate: float = Field(default=0.001, gt=0, le=1, description="Adam's learning rate.")
    schedule: str = Field(default="paper", description="Learning-rate schedule")
    stop_at: float | None = Field(
        default=None, gt=0, le=1, description="End at the first validation accuracy (0 to 1) that reaches this."
    )
    validations: int = Field(default=1, ge=1, le=1000, description="Validations per epoch (1).")
    precision: Precision = Field(default="auto", description="auto, float32 or bfloat16.")


class RunConfig(_Frozen):
    """One training run, completely."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    def to_toml(self) -> str:
        """The run as TOML that `read_run_config` reads back; keys that are None are left out, but for options."""
        content = self.model_dump(mode="json", exclude_none=True)
        content["model"]["options"] |= {key: "None" for key, value in self.model.options.items() if value is None}
        return tomli_w.dumps(content)


class EvaluationConfig(_Frozen):
    """What trained models are tested on: names of sets, versions of each digit in synthetic ones, first images only."""

    sets: tuple[str, ...] = ("mnist-translated", "affnist-synthetic")
    copies: int = Field(default=32, ge=1, le=1000)
    limit: int | None = Field(default=None, ge=1)


class PipelineRuns(_Frozen):
    """One ``[[runs]]`` entry: a model, for each of its routing iterations and seeds."""

    model: str
    label: str | None = None  # what tables and figures call it; the model's name when absent
    published: str = ""  # the published network it makes again, by its method in analysis/published.csv
    routings: Routings | None = None
    seeds: Seeds | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)  # keys that differ from the pipeline's table of this name
    training: dict[str, Any] = Field(default_factory=dict)


class Pipeline(_Frozen):
    """A whole experiment: runs, and the sets each is tested on."""

    name: Annotated[str, AfterValidator(_folder_name)]  # the file's, without ending; names the report
    title: str
    note: str = ""  # a sentence under each table of the report
    seeds: Seeds = (0,)
    # Every run is kept, too, as it was when it first reached each of these validation accuracies, as a run of its own
    # (`stop_at`): models are then compared at equal accuracy, not only at their best.
    matched: Accuracies = ()
    explain: bool = False  # the report also measures where and why models fail
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runs: tuple[PipelineRuns, ...] = Field(min_length=1)

    def expand(self) -> list[tuple[str, RunConfig, str]]:
        """Every run as in the file, seeds innermost, matched ones last: its label, itself, what it makes again."""
        cells = []
        for number, entry in enumerate(self.runs, start=1):
            where = f"[[runs]] number {number} of pipeline '{self.name}'"
            data = _validate(DataConfig, self.data.model_dump() | entry.data, f"data of {where}")
            training = _validate(TrainingConfig, self.training.model_dump() | entry.training, f"training of {where}")
            label = entry.label or entry.model
            kinds = [(label, training)]
            for accuracy in self.matched if training.stop_at is None else ():
                stopping = training.model_copy(update={"stop_at": accuracy})
                kinds.append((f"{label}, matched at {100 * accuracy:g}%", stopping))
            for (name, kind), routings in itertools.product(kinds, entry.routings or (None,)):
                options = entry.options | ({} if routings is None else {"routings": routings})
                model = ModelConfig(name=entry.model, options=options)
                for seed in entry.seeds or self.seeds:
                    own = kind.model_copy(update={"seed": seed})
                    cells.append((name, RunConfig(model=model, data=data, training=own), entry.published))
        return cells


_Model = TypeVar("_Model", bound=BaseModel)


def _validate(kind: type[_Model], content: Mapping[str, Any], where: str) -> _Model:
    """A configuration, or the first of pydantic's complaints as one sentence."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    location, given = ".".join(map(str, first["loc"])), first["input"]
    if first["type"] == "extra_forbidden":
        known = _fields(kind, first["loc"])
        raise UsageError(f"unknown key '{location}' in {where}: {nearest(str(first['loc'][-1]), known)}")
    if first["type"] == "missing":
        raise UsageError(f"{where} lacks the key '{location}'.")
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        raise UsageError(f"{location} = {given!r} in {where} is unknown: {nearest(str(given), choices)}")
    raise UsageError(f"{location} = {given!r} in {where} is not valid: {first['msg'][0].lower()}{first['msg'][1:]}.")


def _fields(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys that are valid where the last part of `location` stands."""
    for part in location[:-1]:
        if isinstance(part, str):
            kind = kind.model_fields[part].annotation
            kind = next((argument for argument in get_args(kind) if isinstance(argument, type)), kind)
    return list(kind.model_fields)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = [*shipped_pipelines(), *(str(found) for found in Path("pipelines").glob("*.toml"))]
        raise UsageError(f"there is no file {path}: {nearest(str(path), known)}") from None
    except (OSError, ValueError, RecursionError) as error:  # tomllib raises more than its own errors
        why = error.strerror if isinstance(error, OSError) else f"it is not valid TOML: {error}"
        raise UsageError(f"{path} cannot be read: {why}.") from None


def read_run_config(path: Path) -> RunConfig:
    """Read a run from TOML; UsageError says what is wrong, and the nearest valid key for an unknown one."""
    return _validate(RunConfig, _read_toml(path), str(path))


def read_pipeline(path: Path) -> Pipeline:
    """Read a pipeline from TOML, or one that affbench comes with by its name; raises as `read_run_config`."""
    if path.parent == Path() and not path.exists():
        path = shipped_pipelines().get(path.stem, path)
    return _validate(Pipeline, {"name": path.stem, **_read_toml(path)}, str(path))


def shipped_pipelines() -> dict[str, Path]:
    """The pipelines that affbench comes with, by their names."""
    return {path.stem: path for path in sorted(shipped("pipelines").glob("*.toml"))}


def shipped(folder: str) -> Path:
    """A folder of the repository that affbench carries along: inside an installed package, beside it in a clone."""
    inside = Path(__file__).parents[1] / folder
    return inside if inside.is_dir() else inside.parents[1] / folder


def override(config: _Model, where: str = "the command line", **changes: Any) -> _Model:
    """A copy of any configuration with some keys changed; those given as None stay as they are."""
    given = {key: value for key, value in changes.items() if value is not None}
    return _validate(type(config), config.model_dump() | given, where)
