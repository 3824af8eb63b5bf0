"""Options that several commands share, and those that are made from the fields of the configuration."""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand
from typer.main import get_command

from affbench.base.errors import UsageError, nearest
from affbench.cli.session import home

if TYPE_CHECKING:
    from affbench.base.config import RunConfig
    from affbench.data.sets import SetPart
    from affbench.experiment.cells import Engine


def known(kind: str) -> Callable[[typer.Context, str], list[str]]:
    """What completes the names of a kind in a shell; the modules that know them are imported only then."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        names: Iterable[str]
        if kind == "runs":
            from affbench.run.folder import default_results_dir, list_runs

            names = [run.name for run in list_runs(Path(ctx.params.get("results_dir") or default_results_dir()))]
        elif kind == "models":
            from affbench.models.registry import model_names

            names = model_names()
        else:
            from affbench.data.sets import SETS, SOURCES

            names = SETS if kind == "sets" else SOURCES
        return [name for name in names if name.startswith(incomplete)]

    return complete


Model = Annotated[
    str | None,
    typer.Option(
        help="capsnet (the default), another of 'affbench models', timm:NAME, or your own file.py:Class.",
        autocompletion=known("models"),
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the model, such as filters=32; repeatable."),
]
Routings = Annotated[int | None, typer.Option(min=1, help="Routing iterations (CapsNet: 3).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps, or auto: the best one here.")]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run", help="Run, or the beginning of its name; the latest by default.", autocompletion=known("runs")
    ),
]
CheckpointMinutes = Annotated[float, typer.Option(min=0, help="Time between two saves; an interruption saves as well.")]
TestLimit = Annotated[int | None, typer.Option(min=1, help="Test on the first N images of each set.")]
Copies = Annotated[int, typer.Option(min=1, max=1000, help="Versions of each digit in a synthetic affine set.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
ImageLimit = Annotated[int | None, typer.Option(min=1, help="Use the first N images only.")]


@dataclass(frozen=True)
class Images:
    """Which images, and how a synthetic set of them is varied."""

    set_name: Annotated[
        str, typer.Option("--set", help="Set; 'affbench sets' shows them all.", autocompletion=known("sets"))
    ] = "affnist"
    limit: ImageLimit = None
    copies: Copies = 32
    rotation: Annotated[float | None, typer.Option(help="Synthetic sets: rotation up to ± this many degrees.")] = None
    shear: Annotated[float | None, typer.Option(help="Synthetic sets: shear up to ± this.")] = None
    expansion: Annotated[float | None, typer.Option(help="Synthetic sets: expansions within 1 ± this.")] = None
    translation: Annotated[float | None, typer.Option(help="Synthetic sets: translation up to ± this many pixels.")] = (
        None
    )
    only: Annotated[str | None, typer.Option(help="Synthetic sets: vary only this factor, such as rotation.")] = None

    def part(self, split: str = "test") -> SetPart:
        """These images of a split."""
        from affbench.data.sets import find_part, varied_name

        varied = {name: getattr(self, name) for name in ("rotation", "shear", "expansion", "translation", "only")}
        named = varied_name(self.set_name, **varied)
        if named != self.set_name and "@" in self.set_name:
            raise UsageError(f"set '{self.set_name}' names its variation already; leave out the options that vary it.")
        return find_part(named, split, self.copies, self.limit)


@dataclass(frozen=True)
class Place:
    """Where the runs of a sweep or a pipeline are made."""

    engine: Annotated[str, typer.Option("--engine", help="Where runs are made: local or ray.")] = "local"
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster (HOST:6379 or auto); by default one is started here.")
    ] = None
    cpus_per_run: Annotated[int | None, typer.Option(min=1, help="Threads of a run, and CPUs it asks Ray for.")] = None
    gpus_per_run: Annotated[float | None, typer.Option(min=0, help="GPUs a run asks Ray for; 0.5 shares one.")] = None

    def to_engine(self) -> Engine:
        """The engine of that name, with what its runs may use."""
        from affbench.experiment.cells import Engine

        if self.engine not in ("local", "ray"):
            raise UsageError(f"--engine {self.engine} is unknown: {nearest(self.engine, ('local', 'ray'))}")
        if self.engine == "local" and (self.ray_address, self.gpus_per_run) != (None, None):
            raise UsageError("--ray-address and --gpus-per-run go with --engine ray.")
        return Engine(self.engine, self.ray_address, self.cpus_per_run, self.gpus_per_run)


class OfRun(TyperCommand):
    """A command that has an option for every field of a run's configuration, and finds what is given in `context.obj`.

    They are made when the command is used: pydantic would be half of the time that ``affbench --help`` takes.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own options, and those made from the configuration that it has not itself."""
        own = super().get_params(ctx)
        taken = {option.name for option in own}
        taken |= {"seed"} if "seeds" in taken else set()
        return own + [option for option in _made() if option.name not in taken]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, with what is taken here where nothing is said."""
        from affbench.base.device import resolve_device, resolve_precision

        device = resolve_device("auto")
        precision = resolve_precision("auto", device)
        self.epilog = f"On this machine --device auto is {device}, and --precision auto is {precision}."
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and keep the function's arguments and what is said of the run apart."""
        rest = super().parse_args(ctx, args)
        own = {option.name for option in self.params}
        given = {name: ctx.params.pop(name) for name in list(ctx.params) if name not in own}
        ctx.obj = {name: value for name, value in given.items() if value not in (None, (), [])}
        return rest


@functools.cache
def _made() -> list[Any]:
    from affbench.base.config import DataConfig, TrainingConfig
    from affbench.run.stopping import SCHEDULES

    config = typer.Option(help="A run's TOML file, such as a run folder's config.toml.")
    kinds: dict[str, Any] = {"model": Model, "routings": Routings, "option": ModelOptions}
    kinds["config"] = Annotated[Path | None, config]
    for name, field in (TrainingConfig.model_fields | DataConfig.model_fields).items():
        # "paper" and other words of a Literal are text here: the configuration knows, and suggests, the right ones.
        kind = next((k for k in (field.annotation, *get_args(field.annotation)) if k in (bool, int, float)), str)
        least = next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None)
        choices = f": {', '.join(SCHEDULES)}." if name == "schedule" else ""
        option = typer.Option(*([f"--{name}"] if kind is bool else []), min=least, help=f"{field.description}{choices}")
        if name != "copies":  # of a set to train on: a configuration file says it
            kinds[name] = Annotated[kind | None, option]

    def options() -> None: ...

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, annotation=kind, default=None) for name, kind in kinds.items()]
    options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    options.__annotations__ = kinds
    holder = typer.Typer(add_completion=False)
    holder.command()(options)
    return list(get_command(holder).params)


def run_config(
    *,
    config: str | Path | None = None,
    model: str | None = None,
    routings: int | None = None,
    option: list[str] | tuple[str, ...] | None = None,
    **given: Any,
) -> RunConfig:
    """The run that a file and the options on the command line describe together; the options win."""
    from affbench.base.config import DataConfig, RunConfig, override, read_run_config

    base = read_run_config(home(Path(config))) if config else RunConfig()
    name = model or base.model.name
    options = dict(base.model.options) if name == base.model.name else {}
    options |= _model_options(option or ())
    if routings is not None:
        from affbench.models import model_options

        if "routings" not in model_options(name):
            raise UsageError(f"--routings does not go with model '{name}', which has no routing.")
        options["routings"] = routings
    data = {key: given.pop(key) for key in list(given) if key in DataConfig.model_fields}
    return override(
        base,
        model={"name": name, "options": options},
        data=override(base.data, **data).model_dump(),
        training=override(base.training, **given).model_dump(),
    )


def _model_options(given: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs, the values as TOML; ``64,32`` is a list, ``none`` is None, and what is no TOML a string."""
    options = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {pair} is not of the form KEY=VALUE.")
        for text in (value, f"[{value}]" if "," in value else value):
            try:
                options[key.replace("-", "_")] = tomllib.loads(f"value = {text}")["value"]
                break
            except tomllib.TOMLDecodeError:
                options[key.replace("-", "_")] = None if value == "none" else value
    return options


def whole_numbers(option: str, text: str, least: int) -> list[int]:
    """A comma-separated list of different whole numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if not numbers or min(numbers) < least or len(set(numbers)) < len(parts):
        raise UsageError(f"{option} {text} must list different whole numbers of at least {least}, such as 1,3,5.")
    return numbers
