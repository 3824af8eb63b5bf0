"""Files that came from elsewhere, .mat, .zip and .npz, read as if they were hostile.

Nothing in here unpickles, follows a link or trusts a size before checking it, and .mat files are unpacked in a process
of their own. What a file means is decided by its caller (`affbench.data.affnist`).
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from affbench.base.errors import AffbenchError, DataError
from affbench.base.store import temporary_folder, writing

ARCHIVE_LIMIT = 2**33  # bytes of all members of an archive when unpacked; affNIST's largest has about 4 GB
MEMBER_COUNT = 4096  # members of an archive
_SECONDS = 600  # to unpack a .mat file
_CRASHED = "it makes its reader crash, or takes it too long"

Array: TypeAlias = npt.NDArray[Any]
Variables: TypeAlias = "dict[str, Array | Variables | None]"


@contextlib.contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever reading a bad file may raise into one clear sentence."""
    try:
        yield
    except AffbenchError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # h5py, zipfile, zlib and NumPy raise nearly anything on hostile bytes
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path} is not {kind}, or is damaged ({reason}); fetch it again.") from error


def read_mat_variables(path: Path, called: str) -> Variables:
    """The variables of a MATLAB file, which errors call so: numbers as arrays, structs as dicts, all else as None."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("matlab.py")), str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    with (
        reading(called, "a MATLAB file"),
        path.open("rb"),
        subprocess.Popen(  # noqa: S603 - this interpreter, this package
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, pipesize=1 << 20
        ) as reader,
    ):
        guard = threading.Timer(_SECONDS, reader.kill)
        guard.start()
        try:
            return _received(reader.stdout)
        finally:
            guard.cancel()
            reader.kill()


def _received(stream: Any) -> Variables:
    """What `affbench.data.matlab` has found."""
    told = json.loads(stream.readline() or json.dumps({"error": _CRASHED}))
    if "error" in told:
        raise ValueError(told["error"])

    def received(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: received(value) for name, value in item.items()}
        if item is None:
            return None
        values = np.empty(item[1], item[0])
        if values.size and stream.readinto(values.reshape(-1).view(np.uint8)) < values.nbytes:
            raise ValueError(_CRASHED)
        return values.T

    variables: Variables = received(told["variables"])
    return variables


def check_archive(path: Path) -> list[str]:
    """The names of the regular files in a .zip archive, if it is safe to open."""
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        count, total = len(archive.infolist()), sum(member.file_size for member in archive.infolist())
        if count > MEMBER_COUNT or total > ARCHIVE_LIMIT:
            raise ValueError(
                f"its {count:,} members unpack to {total:,} bytes: {MEMBER_COUNT:,} and {ARCHIVE_LIMIT:,} may"
            )
        names = [name for name in archive.namelist() if not name.endswith("/")]  # damaged ones may be ""
        for name in names:
            inside = PurePosixPath(name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts or ":" in name:
                raise ValueError(f"its member {name!r} climbs out of the folder")
    return [name for name in names if not name.startswith("__MACOSX/") and not PurePosixPath(name).name.startswith(".")]


@contextlib.contextmanager
def extracted(path: Path, name: str) -> Iterator[Path]:
    """One member of an archive that `check_archive` passed, as a temporary file; no longer than it is said to be."""
    with temporary_folder() as folder:
        target = folder / f"member{PurePosixPath(name).suffix}"
        with (
            reading(path, "a zip archive"),
            zipfile.ZipFile(path) as archive,
            archive.open(name) as member,
            writing(target),
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, 1 << 20)
        yield target


@contextlib.contextmanager
def npz_array(path: Path) -> Iterator[Array]:
    """The one array of numbers in an .npz archive, unpacked on disk, so that it is never whole in memory."""
    check_archive(path)
    with extracted(path, "arr_0.npy") as file:
        with reading(path, "a NumPy archive"):
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if array.dtype.kind not in "buif":
                raise ValueError(f"it holds {array.dtype} values; only numbers are safe to load")
            if array.offset + array.nbytes != file.stat().st_size:
                raise ValueError("it goes on after its last value")
        yield np.asarray(array)
