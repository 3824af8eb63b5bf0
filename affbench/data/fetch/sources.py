"""Where the sets come from: addresses in turn, checksums, licences. Nothing here touches the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One file and all that is known of it."""

    name: str  # the path under which it is kept, within the folder of its set
    urls: tuple[str, ...] = ()  # complete, https only, tried in turn; none when it can only come from a mirror
    md5: str | None = None  # published, as the next one; without any the first copy's sha256 is remembered
    sha256: str | None = None
    max_bytes: int = 64 * MIB  # its size, or the most accepted where that is not published
    aliases: tuple[str, ...] = ()  # other paths under which a mirror may hold it: "MNIST/raw/…" in a torchvision root
    not_in: tuple[str, ...] = ()  # words in the name of a mirror's folder that make files called by an alias another's
    plain: RemoteFile | None = None  # the same uncompressed, accepted from a mirror's folder in its place

    @property
    def published(self) -> str | None:
        """The published checksum, such as ``md5:…``, by which any copy can be told from a damaged one."""
        return f"sha256:{self.sha256}" if self.sha256 else f"md5:{self.md5}" if self.md5 else None

    @property
    def forms(self) -> tuple[RemoteFile, ...]:
        """The file, and its uncompressed form where that will do."""
        return (self,) if self.plain is None else (self, self.plain)


@dataclass(frozen=True)
class Source:
    """A group of files that together hold a set, or a split of one."""

    name: str  # as recorded in the converted set: "affNIST, official test.mat.zip"
    files: tuple[RemoteFile, ...]  # all of them are needed
    license: str
    homepage: str
    optional: tuple[RemoteFile, ...] = ()  # what adds to it, and whose absence is no error


def _known(folder: str) -> dict[str, tuple[str | None, ...]]:
    """What the table beside this module says of the files of a family: MD5, sha256, the uncompressed one's, bytes."""
    lines = Path(__file__).with_name("checksums.txt").read_text("ascii").splitlines()
    rows = (line.removeprefix(f"{folder}/").split() for line in lines if line.startswith(f"{folder}/"))
    return {name: tuple(None if value == "-" else value for value in values) for name, *values in rows}


def _idx_files(family: str, folder: str, *bases: str) -> tuple[RemoteFile, ...]:
    """The four files of an MNIST-like set, which torchvision keeps in `folder`."""
    files = []
    for name, (md5, sha256, plain_sha256, _) in _known(family).items():
        plain_name = name.removesuffix(".gz")
        # Files unpacked by hand often carry a dot where the official name has a dash.
        dotted = plain_name.replace("-idx", ".idx")
        aliases = (dotted, f"{folder}/raw/{plain_name}", f"{folder}/raw/{dotted}")
        plain = RemoteFile(plain_name, sha256=plain_sha256, aliases=aliases) if plain_sha256 else None
        urls = tuple(base + name for base in bases)
        files.append(RemoteFile(name, urls, md5, sha256, aliases=(f"{folder}/raw/{name}",), plain=plain))
    return tuple(files)


MNIST = Source(
    "MNIST",
    _idx_files(
        "mnist", "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/", "https://yann.lecun.com/exdb/mnist/"
    ),
    license="Creative Commons Attribution-Share Alike 3.0 (as widely quoted; unconfirmed)",
    homepage="https://yann.lecun.com/exdb/mnist/",
)

FASHION_MNIST = Source(
    "Fashion-MNIST",
    _idx_files(
        "fashion-mnist",
        "FashionMNIST",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    license="MIT",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)

_AFFNIST_HOME = "https://www.cs.toronto.edu/~tijmen/affNIST/"
_AFFNIST_NPZ = "https://github.com/rmrschub/affNIST/raw/main/"
_AFFNIST_BATCHES = 32


def originals(split: str) -> RemoteFile:
    """affNIST's own digits of a split (``"test"``, ``"validation"``, ``"training"``), in the order of its images.

    The original ones are tried first, then the same digits centred on the canvas; their size tells which came.
    """
    paths = (f"32x/originals/{split}.mat.zip", f"32x/just_centered/{split}.mat.zip")
    urls = tuple(_AFFNIST_HOME + path for path in paths)
    aliases = (*paths, f"just_centered/{split}.mat.zip")
    return RemoteFile(f"originals/{split}.mat.zip", urls, max_bytes=1024 * MIB, aliases=aliases)


def _affnist_sources(split: str, *archives: str) -> tuple[Source, ...]:
    """The ways to one split, best first."""
    most = (4096 if split == "training" else 1024) * MIB  # the sizes of official files are not published

    def source(name: str, *files: RemoteFile, optional: tuple[RemoteFile, ...] = (originals(split),)) -> Source:
        return Source(f"affNIST, {name}", files, "not stated by its author; made from MNIST", _AFFNIST_HOME, optional)

    def official(name: str) -> RemoteFile:
        path = f"32x/transformed/{name}"
        return RemoteFile(name, (_AFFNIST_HOME + path,), max_bytes=most, aliases=(path,))

    def batch(n: int) -> RemoteFile:
        # 1.mat … 32.mat are called alike in every split: but for the test split, a folder has to name it.
        loose = (f"{n}.mat",) if split == "test" else ()
        name, aliases = f"{split}_batches/{n}.mat", (f"{split}_batch_{n}.mat", *loose)
        return RemoteFile(name, max_bytes=most, aliases=aliases, not_in=("train", "valid"))

    def mirrored(axis: str) -> RemoteFile:
        name = f"affNIST_{split}_{axis}.npz"
        _, sha256, _, size = _known("affnist")[name]
        return RemoteFile(name, (_AFFNIST_NPZ + name,), sha256=sha256, max_bytes=int(size or 0))

    # A .mat may be stored without compression: 1,600 bytes an image and its table.
    unpacked = RemoteFile(f"{split}.mat", max_bytes=6 * most, aliases=(f"affNIST_{split}.mat",))
    return (
        *(source(f"official {name}", official(name)) for name in archives),
        source(f"{split}.mat, unpacked", unpacked),
        source(f"{split} batches, unpacked", *map(batch, range(1, _AFFNIST_BATCHES + 1))),
        source("NumPy mirror (images and labels, no transformations)", *map(mirrored, "xy"), optional=()),
    )


HOMNIST = Source(
    "homNIST",
    (RemoteFile("homNIST_test.mat", max_bytes=4096 * MIB),),
    license="not stated where affbench's authors read of it",
    homepage="https://www.kaggle.com/datasets/lachlanemacdonald/homnist",
)

AFFNIST: Mapping[str, tuple[Source, ...]] = {
    "affnist": _affnist_sources("test", "test.mat.zip", "test_batches.zip"),
    "affnist-validation": _affnist_sources("validation", "validation.mat.zip", "validation_batches.zip"),
    "affnist-train": _affnist_sources("training", "training_batches.zip"),
}
"""affNIST's splits by the name under which they are fetched: several groups of files, any of which will do."""
