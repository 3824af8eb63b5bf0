"""affNIST as a torchvision dataset."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.datasets import VisionDataset

from affbench.base.errors import DataError, UsageError, nearest
from affbench.data.dataset import TRANSFORM_COLUMNS

_LOG = logging.getLogger(__name__)
TARGETS = {"label": "targets", "transform": "transforms_table", "source_index": "source_index"}
"""Kind of target to the attribute that holds it."""


class AffNIST(VisionDataset):  # type: ignore[misc]  # torchvision ships without types
    """affNIST, or another set of affbench, in the manner of torchvision's MNIST.

    Parameters
    ----------
    root
        Data folder of affbench, as for ``--data-dir``.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    transform, target_transform
        From a PIL image (grey, 40×40), and from the target, to what the dataset is to give.
    download
        Fetch and convert the set if it is not there. Without it nothing is ever downloaded.
    name
        The set: ``"affnist"`` for the official files, ``"affnist-synthetic"`` for the set made from MNIST, or any
        other that `affbench.load_dataset` knows.
    target_type
        What the target is, or a sequence for a tuple of several: ``"label"`` (int), ``"transform"`` (float32 tensor of
        the six numbers of `TRANSFORM_COLUMNS`), ``"source_index"`` (int, the original digit).

    Attributes
    ----------
    data, targets
        uint8 tensor (N, 40, 40), and int64 tensor (N,). They and the tables below can be assigned, as torchvision's
        MNIST allows: a choice of images, or other labels.
    transforms_table, source_index
        float32 tensor (N, 6) and int64 tensor (N,), or None where the set has no transformations.

    Raises
    ------
    UsageError
        There is no such set, split or target.
    DataError
        The set is not there and was not to be downloaded, or has no transformations but they were asked for.
    """

    classes = tuple(str(digit) for digit in range(10))

    def __init__(
        self,
        root: str | Path,
        split: str = "test",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        *,
        name: str = "affnist",
        target_type: str | Sequence[str] = "label",
    ) -> None:
        from affbench.data.sets import find_part

        self.target_type = (target_type,) if isinstance(target_type, str) else tuple(target_type)
        for kind in self.target_type or ("",):
            if kind not in TARGETS:
                raise UsageError(f"unknown target_type '{kind}': {nearest(str(kind), TARGETS)}")
        folder, part = Path(root), find_part(name, split)
        if download and not part.family.embedded:  # the sample is always there
            from affbench.data.fetch.sets import fetch_sets

            fetch_sets([part.fetched_as], folder)
        if not part.is_ready(folder):
            if part.spec.form == "official":
                raise DataError(
                    f"the official set '{name}' ({split}) is not in {folder}: 'download=True' fetches it; "
                    f"name='affnist-synthetic' is a set drawn in the same way from MNIST's digits."
                )
            n = part.made_size or 0
            size = f"{n:,} images, {n * part.spec.canvas**2 / 1e6:,.0f} MB unpacked"
            _LOG.warning("making %s (%s) in %s, once: %s", name, split, folder, size)
        self.dataset = part.load(folder)
        super().__init__(str(root), transform=transform, target_transform=target_transform)
        arrays = {key: torch.tensor(values) for key, values in self.dataset.arrays.items()}  # copies, to be written to
        if set(self.target_type) - {"label"} and "transforms" not in arrays:
            raise DataError(f"{self.dataset.name} ({split}) has no transformations to give as a target.")
        self.data, self.targets = arrays["images"], arrays["labels"].long()
        self.transforms_table = arrays.get("transforms")
        self.source_index = arrays["source_index"].long() if "source_index" in arrays else None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name to label."""
        return {name: index for index, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """The image and the target at `index`, each after its transform."""
        image: Any = Image.fromarray(self.data[index].numpy())
        targets = tuple(self._target(kind, index) for kind in self.target_type)
        target: Any = targets if len(targets) > 1 else targets[0]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def _target(self, kind: str, index: int) -> Any:
        name = TARGETS[kind]
        values = getattr(self, name)
        if len(values) != len(self.data):
            raise UsageError(f"data has {len(self.data):,} images, but {name} {len(values):,} values: choose from all.")
        return values[index].clone() if kind == "transform" else int(values[index])

    def extra_repr(self) -> str:
        """What `repr` adds: the set and the columns of its transformations."""
        columns = "none" if self.transforms_table is None else ", ".join(TRANSFORM_COLUMNS)
        return f"Set: {self.dataset.name}\nSplit: {self.dataset.split}\nTransformations: {columns}"
