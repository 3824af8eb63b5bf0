"""Networks that were trained elsewhere: weights from a file, or of a module, become a run like any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from affbench.base import store
from affbench.base.config import DataConfig, ModelConfig, RunConfig
from affbench.base.device import resolve_device
from affbench.base.errors import UsageError, reason
from affbench.base.workspace import Workspace
from affbench.data.sets import default_data_dir, find_part, find_set
from affbench.data.synthesis import COPIES
from affbench.models import build_model
from affbench.run.evaluate import Evaluation, predict
from affbench.run.folder import WEIGHTS, Run, default_results_dir, run_name, runs_dir
from affbench.run.plan import elsewhere_recipe, resolved_options
from affbench.run.record import load_model, make_whole, record_evaluation
from affbench.run.resume import conclude, pack

WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training scripts save a state dict
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile
_LOOKED_AT, _ROUNDED = 256, 0.02  # images that are looked at again, and the share that rounding may turn


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file or one of `torch.save`; no code in a file is ever run."""
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"--weights {path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # torch.load raises all kinds on files that are none of its own
        raise UsageError(
            f"--weights {path} is damaged, or holds more than weights, which would mean running code from it "
            f"({type(error).__name__}); save 'model.state_dict()' with torch.save, or as .safetensors."
        ) from None
    if isinstance(content, Mapping):
        content = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(
            f"--weights {path} holds no state dict, neither by itself nor under {', '.join(WRAPPERS)}; save "
            "'model.state_dict()' with torch.save, or as .safetensors."
        )
    return {str(name): value for name, value in content.items()}


def adopt(config: ModelConfig, weights: Mapping[str, Tensor], workspace: Workspace) -> Run:
    """The run of a network with these weights; made once, and the same one for the same network and weights."""
    canvas, options = find_set(DataConfig().train_set).canvas, resolved_options(config)
    model = build_model(config.name, canvas=canvas, **options)
    own = model.state_dict()
    while not weights.keys() <= own.keys() and all(name.startswith(_PREFIXES) for name in weights):
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    if any(map(is_lazy, own.values())) or weights.keys() - own.keys():
        make_whole(model, canvas)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            f"these weights are not those of '{config.name}' with its options (-o): {reason(error)}."
        ) from None
    content = pack(weights)
    run_config = RunConfig(model=config.model_copy(update={"options": options}))
    recipe = elsewhere_recipe(run_config.model, content)
    folder = runs_dir(workspace.results) / run_name(run_config.model, "elsewhere", recipe.key)
    with store.lock(folder):
        if not store.cached(folder, *recipe):
            conclude(folder, recipe, run_config, {WEIGHTS: content}, model, resolve_device(workspace.device))
    return Run(folder)


def keep(
    evaluation: Evaluation,
    model: nn.Module,
    name: str,
    *,
    copies: int = COPIES,
    limit: int | None = None,
    data_dir: Path | str | None = None,
    results_dir: Path | str | None = None,
    **options: Any,
) -> str:
    """Keep what `affbench.evaluate` found, and the network, as a run that reports and comparisons know.

    Parameters
    ----------
    evaluation
        What `affbench.evaluate` returned for `model`.
    model
        The network; its weights are copied.
    name
        What builds it, as for `affbench.build_model`: ``"package.module:factory"`` or ``"file.py:factory"``.
    copies, limit
        As `affbench.load_dataset` was given.
    data_dir, results_dir
        Folders of the data and of the results; those of `affbench.load_dataset` and `affbench.load_model` when None.
    **options
        Options of the factory.

    Returns
    -------
    str
        The name of the run, as for ``affbench compare`` and `affbench.load_model`.

    Raises
    ------
    UsageError
        The weights are not those of the network that the factory builds, or the evaluation is not of them.
    """
    results = default_results_dir() if results_dir is None else Path(results_dir)
    workspace = Workspace(default_data_dir() if data_dir is None else Path(data_dir), results)
    part = find_part(evaluation.set, evaluation.split, copies, limit)
    dataset = part.load(workspace.data)
    if len(dataset) != evaluation.n:
        raise UsageError(
            f"the evaluation is of {evaluation.n:,} images of '{part.name}', but these are {len(dataset):,}: give the "
            "copies and the limit that load_dataset was given."
        )
    run = adopt(ModelConfig(name=name, options=options), model.state_dict(), workspace)
    some = dataset.rows(slice(0, _LOOKED_AT))
    again, _ = predict(load_model(run), some)
    if (again != evaluation.predictions[:_LOOKED_AT]).mean() > _ROUNDED:
        raise UsageError(f"'{name}' with these weights answers otherwise than the evaluation says; evaluate it again.")
    record_evaluation(run, evaluation, part, dataset, workspace, seconds=0.0)
    return run.name
