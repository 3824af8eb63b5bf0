"""Where the sets come from: addresses in turn, checksums, licences. Nothing here touches disk or network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One file and all that is known of it."""

    name: str  # the path under which it is kept, within the folder of its set
    urls: tuple[str, ...] = ()  # complete, https only, tried in turn; none when it can only come from a mirror
    md5: str | None = None  # published, as the next one; without any the first copy's sha256 is remembered
    sha256: str | None = None
    size: int | None = None  # in bytes, where published
    max_bytes: int = 64 * MIB  # the most accepted where the size is not known
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


def _idx_files(
    bases: tuple[str, ...], folder: str, known: Mapping[str, tuple[str, str | None, str | None]]
) -> tuple[RemoteFile, ...]:
    """The four files of an MNIST-like set; `known` has MD5, sha256 and the sha256 of the plain file, by its name."""
    files = []
    for plain_name, (md5, sha256, plain_sha256) in known.items():
        # Files unpacked by hand often carry a dot where the official name has a dash.
        dotted = plain_name.replace("-idx", ".idx")
        aliases = (dotted, f"{folder}/raw/{plain_name}", f"{folder}/raw/{dotted}")
        plain = None if plain_sha256 is None else RemoteFile(plain_name, sha256=plain_sha256, aliases=aliases)
        name = f"{plain_name}.gz"
        urls = tuple(base + name for base in bases)
        files.append(RemoteFile(name, urls, md5, sha256, aliases=(f"{folder}/raw/{name}",), plain=plain))
    return tuple(files)


# MD5 as in torchvision, which names the second address with http; sha256 computed from files with those MD5.
MNIST = Source(
    "MNIST",
    _idx_files(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://yann.lecun.com/exdb/mnist/"),
        "MNIST",
        {
            "train-images-idx3-ubyte": (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "train-labels-idx1-ubyte": (
                "d53e105ee54ea40749a09fcbcd1e9432",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            "t10k-images-idx3-ubyte": (
                "9fb629c4189551a2d022fa330f9573f3",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            "t10k-labels-idx1-ubyte": (
                "ec29112dd5afa0611ce80d1b7f02629c",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        },
    ),
    license="Creative Commons Attribution-Share Alike 3.0 (as widely quoted; unconfirmed)",
    homepage="https://yann.lecun.com/exdb/mnist/",
)

FASHION_MNIST = Source(
    "Fashion-MNIST",
    _idx_files(
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        "FashionMNIST",
        {
            "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None, None),
            "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", None, None),
            "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", None, None),
            "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", None, None),
        },
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


def _affnist_sources(split: str, archives: tuple[str, ...], npz: Mapping[str, tuple[int, str]]) -> tuple[Source, ...]:
    """The ways to one split, best first; `npz` has size and sha256 of the NumPy mirror's files, by axis."""
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
        name, (size, sha256) = f"affNIST_{split}_{axis}.npz", npz[axis]
        return RemoteFile(name, (_AFFNIST_NPZ + name,), sha256=sha256, size=size)

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
    "affnist": _affnist_sources(
        "test",
        ("test.mat.zip", "test_batches.zip"),
        {
            "x": (79026299, "6faa67191d40a5690cfb02f4acdac41fc09cf36cfbd304308569a98dd31f38d2"),
            "y": (185468, "173c1dcf848ea87e4af107280c66d07d7048ea46a2483bf5f2fc40e45a8ccb30"),
        },
    ),
    "affnist-validation": _affnist_sources(
        "validation",
        ("validation.mat.zip", "validation_batches.zip"),
        {
            "x": (78988616, "080dfad32b19e8b09b61fcee4a0f70da69a7c81a7ce6334d5926bf58153a0125"),
            "y": (178745, "186e6dcf6989f96539aeada6d858aab6307fb6183d41d736a1bd22514ed7a208"),
        },
    ),
    "affnist-train": _affnist_sources(
        "training",
        ("training_batches.zip",),
        {
            "x": (395129205, "e47c927204a25132980eb1abec063bf671a4a5b99a941594a45c8bff7902fd74"),
            "y": (900792, "a4cb4c558f22a1c1e9bde8821553ba61185ba1c28fd5904fc7f4925c81f1e21c"),
        },
    ),
}
"""affNIST's splits by the name under which they are fetched: several groups of files, any of which will do."""
