"""Where the sets come from: addresses in turn, checksums, licences. Nothing here touches disk or network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from affbench.errors import UsageError, nearest

MIB = 1 << 20

Layout = Literal["idx", "affnist-mat", "affnist-npz", "homnist-mat"]


@dataclass(frozen=True)
class RemoteFile:
    """One file and all that is known of it.

    Attributes
    ----------
    name
        Name under which it is kept.
    urls
        Complete addresses, https only, tried in turn; none when it can only come from a mirror.
    md5, sha256
        Published checksums, hexadecimal. Without one, the first copy's sha256 is remembered and holds from then on.
    size
        Exact size in bytes, where published.
    max_bytes
        The most bytes accepted, where the size is not known.
    aliases
        Other relative paths under which a mirror may hold it, such as ``"MNIST/raw/…"`` in a torchvision root.
    not_in
        Words in the name of a mirror's folder that make its files another set's, where an alias alone cannot tell.
    plain
        The same content uncompressed, accepted from a mirror's folder in place of the compressed file.
    """

    name: str
    urls: tuple[str, ...] = ()
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None
    max_bytes: int = 64 * MIB
    aliases: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()
    plain: RemoteFile | None = None

    @property
    def published(self) -> bool:
        """Whether a checksum is published, so that any copy can be told from a damaged one."""
        return self.md5 is not None or self.sha256 is not None


@dataclass(frozen=True)
class Source:
    """A group of files that together hold a set, or a split of one.

    Attributes
    ----------
    name
        What it is, as recorded in the converted set: ``"affNIST, official test.mat.zip"``.
    layout
        How the files are read.
    files
        All of them are needed.
    license, homepage, citation
        Of the set.
    """

    name: str
    layout: Layout
    files: tuple[RemoteFile, ...]
    license: str
    homepage: str
    citation: str


def _idx_files(
    bases: tuple[str, ...],
    folder: str,
    md5: Mapping[str, str],
    known: Mapping[str, tuple[int, str, int, str]] = MappingProxyType({}),
) -> tuple[RemoteFile, ...]:
    """The four files of an MNIST-like set; `known` has size and sha256, compressed and plain, by file name."""
    files = []
    for name, digest in md5.items():
        plain_name = name.removesuffix(".gz")
        size, sha256, plain_size, plain_sha256 = known.get(name, (None, None, None, None))
        plain = None
        if plain_sha256 is not None:
            # Files unpacked by hand often carry a dot where the official name has a dash.
            names = (plain_name, plain_name.replace("-idx", ".idx"))
            plain = RemoteFile(
                plain_name,
                sha256=plain_sha256,
                size=plain_size,
                aliases=(names[1], *(f"{folder}/raw/{each}" for each in names)),
            )
        files.append(
            RemoteFile(
                name,
                urls=tuple(base + name for base in bases),
                md5=digest,
                sha256=sha256,
                size=size,
                aliases=(f"{folder}/raw/{name}",),
                plain=plain,
            )
        )
    return tuple(files)


# MD5 as in torchvision, which names the second address with http; sizes and sha256 computed from files with those MD5.
_MNIST = Source(
    "MNIST",
    "idx",
    _idx_files(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://yann.lecun.com/exdb/mnist/"),
        "MNIST",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        {
            "train-images-idx3-ubyte.gz": (
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                47040016,
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "train-labels-idx1-ubyte.gz": (
                28881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                60008,
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            "t10k-images-idx3-ubyte.gz": (
                1648877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                7840016,
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                4542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                10008,
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        },
    ),
    license="Creative Commons Attribution-Share Alike 3.0 (as widely quoted; unconfirmed)",
    homepage="https://yann.lecun.com/exdb/mnist/",
    citation="Y. LeCun, C. Cortes, C. J. C. Burges. The MNIST database of handwritten digits.",
)

_FASHION_MNIST = Source(
    "Fashion-MNIST",
    "idx",
    _idx_files(
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        "FashionMNIST",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    license="MIT",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    citation="H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a novel image dataset for benchmarking machine learning "
    "algorithms. arXiv 1708.07747, 2017.",
)

_AFFNIST_HOME = "https://www.cs.toronto.edu/~tijmen/affNIST/"
_AFFNIST_FILES = f"{_AFFNIST_HOME}32x/transformed/"
_AFFNIST_NPZ = "https://github.com/rmrschub/affNIST/raw/main/"
_AFFNIST_BATCHES = 32


def _affnist(name: str, layout: Layout, *files: RemoteFile) -> Source:
    return Source(
        f"affNIST, {name}",
        layout,
        files,
        license="not stated by its author; made from MNIST",
        homepage=_AFFNIST_HOME,
        citation="T. Tieleman. The affNIST data set for machine learning. University of Toronto, 2013.",
    )


def _affnist_sources(
    split: str, archives: tuple[str, ...], npz: tuple[tuple[int, str], tuple[int, str]], max_bytes: int
) -> tuple[Source, ...]:
    """The ways to one split, best first: official archive, what it unpacks to, the NumPy mirror.

    Parameters
    ----------
    split
        ``"test"``, ``"validation"`` or ``"training"``, as the official files are named.
    archives
        Official zip files, each holding the whole split.
    npz
        Size in bytes and sha256 of the images and of the labels in the NumPy mirror.
    max_bytes
        Limit of an official file, whose size is not published.
    """
    official = [
        _affnist(
            f"official {name}",
            "affnist-mat",
            RemoteFile(name, (_AFFNIST_FILES + name,), max_bytes=max_bytes, aliases=(f"32x/transformed/{name}",)),
        )
        for name in archives
    ]
    unpacked = _affnist(
        f"{split}.mat, unpacked",
        "affnist-mat",
        # A .mat may be stored without compression: 1,600 bytes an image and its table.
        RemoteFile(f"{split}.mat", max_bytes=6 * max_bytes, aliases=(f"affNIST_{split}.mat",)),
    )
    # 1.mat … 32.mat are called alike in every split: but for the test split, a folder has to name it.
    loose = ("{n}.mat",) if split == "test" else ()
    batches = _affnist(
        f"{split} batches, unpacked",
        "affnist-mat",
        *(
            RemoteFile(
                f"{split}_batch_{n}.mat",
                max_bytes=max_bytes,
                aliases=(f"{split}_batches/{n}.mat", *(name.format(n=n) for name in loose)),
                not_in=("train", "valid"),
            )
            for n in range(1, _AFFNIST_BATCHES + 1)
        ),
    )
    names = (f"affNIST_{split}_x.npz", f"affNIST_{split}_y.npz")
    numpy_mirror = _affnist(
        "NumPy mirror (images and labels, no transformations)",
        "affnist-npz",
        *(
            RemoteFile(name, (_AFFNIST_NPZ + name,), sha256=sha256, size=size, max_bytes=size)
            for name, (size, sha256) in zip(names, npz, strict=True)
        ),
    )
    return (*official, unpacked, batches, numpy_mirror)


_HOMNIST = Source(
    "homNIST",
    "homnist-mat",
    (RemoteFile("homNIST_test.mat", max_bytes=4096 * MIB),),
    license="not stated where affbench's authors read of it",
    homepage="https://www.kaggle.com/datasets/lachlanemacdonald/homnist",
    citation="homNIST: MNIST under homographies. Kaggle data set lachlanemacdonald/homnist.",
)

SOURCES: Mapping[str, Source] = MappingProxyType(
    {"mnist": _MNIST, "fashion-mnist": _FASHION_MNIST, "homnist": _HOMNIST}
)
"""Sets that come from one group of files."""

ALTERNATIVES: Mapping[str, tuple[Source, ...]] = MappingProxyType(
    {
        "affnist": _affnist_sources(
            "test",
            ("test.mat.zip", "test_batches.zip"),
            (
                (79026299, "6faa67191d40a5690cfb02f4acdac41fc09cf36cfbd304308569a98dd31f38d2"),
                (185468, "173c1dcf848ea87e4af107280c66d07d7048ea46a2483bf5f2fc40e45a8ccb30"),
            ),
            1024 * MIB,
        ),
        "affnist-validation": _affnist_sources(
            "validation",
            ("validation.mat.zip", "validation_batches.zip"),
            (
                (78988616, "080dfad32b19e8b09b61fcee4a0f70da69a7c81a7ce6334d5926bf58153a0125"),
                (178745, "186e6dcf6989f96539aeada6d858aab6307fb6183d41d736a1bd22514ed7a208"),
            ),
            1024 * MIB,
        ),
        "affnist-train": _affnist_sources(
            "training",
            ("training_batches.zip",),
            (
                (395129205, "e47c927204a25132980eb1abec063bf671a4a5b99a941594a45c8bff7902fd74"),
                (900792, "a4cb4c558f22a1c1e9bde8821553ba61185ba1c28fd5904fc7f4925c81f1e21c"),
            ),
            4096 * MIB,
        ),
    }
)
"""Sets with several groups of files, any one of which will do, best first."""


def sources_of(name: str) -> tuple[Source, ...]:
    """The sources of a set, any one of which will do, in the order in which they are tried.

    Parameters
    ----------
    name
        One of `SOURCES` or `ALTERNATIVES`.

    Returns
    -------
    tuple of Source

    Raises
    ------
    UsageError
        There is no such set.

    Examples
    --------
    >>> [source.layout for source in sources_of("affnist-train")]
    ['affnist-mat', 'affnist-mat', 'affnist-mat', 'affnist-npz']
    """
    if name in ALTERNATIVES:
        return ALTERNATIVES[name]
    if name in SOURCES:
        return (SOURCES[name],)
    raise UsageError(f"no set called '{name}' can be fetched; {nearest(name, (*SOURCES, *ALTERNATIVES))}.")
