"""Which MNIST digit every image of affNIST was made from.

The official batches run through the originals in an order of their own, in which their ``original_id`` counts. So every
image is brought back into the digit's 28×28 frame by its stored transformation; the mean over a few versions of one
original is close to no other digit of the same label. The digits found are rendered and compared with the stored
images. Files whose ids do count in MNIST's order, such as exported ones, are recognised first.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.dataset import Dataset
from affbench.data.placement import CANVAS, FRAME
from affbench.data.transform import CHUNK, affine_matrices, render, render_matrices, warp

VERSIONS = 8  # of each original that are brought back
CANDIDATES = 3  # nearest digits that are rendered
SAMPLE = 200  # images that tell whether the ids count in MNIST's order
EQUAL = 0.5  # share of equal ink pixels from which a digit is the original; another one reaches about 0.1
FOUND = 0.99  # share of the originals that must be found for the order to be believed

Images = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int32]


def pair(images: Any, known: Dataset, digits: Dataset, originals: Images | None = None) -> tuple[Index, str]:
    """The digit (N,) that each image was made from, counted from 0, and how it was found; `DataError` if it was not.

    `images`: uint8 (N, 40, 40), in memory or in an HDF5 file; `known`: their labels and table, whose ``source_index``
    counts within the file; `originals`: the originals in the file's order, uint8 (M, 28, 28), where there are any.
    """
    (transforms, ids), labels = known.table, known.labels
    few = np.linspace(0, len(ids) - 1, min(SAMPLE, len(ids))).astype(int)
    if ids.max() < len(digits) and (labels == digits.labels[ids]).mean() > FOUND:
        stored = np.stack([images[row] for row in few])
        if np.median(equal_ink(stored, render(digits.images[ids[few]], transforms[few]))) > EQUAL:
            return ids, "as in the file, which counts in MNIST's order"
    if originals is not None and ids.max() < len(originals):
        places = {image.tobytes(): index for index, image in reversed(list(enumerate(digits.images)))}
        same = np.array([places.get(image.tobytes(), -1) for image in originals], np.int32)
        if same.min() < 0:
            raise DataError(f"of the {len(same):,} originals, {(same < 0).sum():,} are no MNIST digits")
        return same[ids], "found by the pixels of the file's originals"
    _, first, group = np.unique(ids, return_index=True, return_inverse=True)
    looks, examples = _looks(images, transforms, group)
    found, equal = nearest(looks, labels[first], examples, affine_matrices(transforms[first]), digits)
    share = float((equal > EQUAL).mean())
    if share < FOUND:
        raise DataError(f"only {share:.1%} of {len(first):,} originals are MNIST digits by the stored table")
    return found[group], f"found by pixels, {share:.2%} of the originals confirmed"


def _looks(
    stored: Any, transforms: npt.NDArray[np.float32], group: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], Images]:
    """The mean look of each original, by its group of images, over its first versions, and the image of its first."""
    order, counts = np.argsort(group, kind="stable"), np.bincount(group)
    version = np.empty(len(group), np.int64)
    version[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    looks = np.zeros((len(counts), FRAME, FRAME), np.float32)
    examples = np.zeros((len(counts), CANVAS, CANVAS), np.uint8)
    for start in range(0, len(group), CHUNK):
        part = slice(start, start + CHUNK)
        images, originals = stored[part], group[part]
        new, used = version[part] == 0, version[part] < VERSIONS
        examples[originals[new]] = images[new]
        if used.any():
            np.add.at(looks, originals[used], brought_back(images[used], affine_matrices(transforms[part][used])))
    looks /= np.minimum(counts, VERSIONS)[:, None, None]
    return looks, examples


def nearest(
    looks: npt.NDArray[np.float32], labels: Images, stored: Images, matrices: npt.NDArray[np.float64], digits: Dataset
) -> tuple[Index, npt.NDArray[np.float64]]:
    """The digit of the same label that each look (n, 28, 28) shows, and how far it explains the stored image.

    Gives int32 (n,), from 0, and float64 (n,), the share of equal ink pixels when the digit is rendered under its
    matrix (n, 3, 3).
    """
    found, best = np.zeros(len(looks), np.int32), np.full(len(looks), -1.0)
    pixels = digits.images.reshape(len(digits), -1).astype(np.float32)
    for label in np.unique(labels):
        rows, candidates = np.flatnonzero(labels == label), np.flatnonzero(digits.labels == label)
        distance = (pixels[candidates] ** 2).sum(1) - 2 * looks[rows].reshape(len(rows), -1) @ pixels[candidates].T
        for place in range(min(CANDIDATES, len(candidates))):
            choice = candidates[np.argpartition(distance, place, axis=1)[:, place]]
            equal = equal_ink(stored[rows], render_matrices(digits.images[choice], matrices[rows]))
            better = equal > best[rows]
            found[rows[better]], best[rows[better]] = choice[better], equal[better]
    return found, best


def equal_ink(stored: Images, rendered: Images) -> npt.NDArray[np.float64]:
    """Share of equal pixels among those with ink in either, for each image; 1 where there is no ink."""
    ink = (stored > 0) | (rendered > 0)
    inked = ink.sum((1, 2))
    return np.where(inked > 0, ((stored == rendered) & ink).sum((1, 2)) / np.maximum(inked, 1), 1.0)


def brought_back(images: Images, matrices: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Images in the digit's frame again: float32 (n, 28, 28), by the transformations (n, 3, 3) that made them."""
    return warp(images, np.linalg.inv(matrices), FRAME).astype(np.float32)
