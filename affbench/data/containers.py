"""Files that came from elsewhere, .mat, .zip and .npz, read as if they were hostile.

Nothing in here unpickles, follows a link or trusts a size before checking it: structure and limits are inspected
first, and only then do scipy, h5py and zipfile see the file. What a file means is decided by its caller
(`affbench.data.affnist`).
"""

from __future__ import annotations

import contextlib
import math
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from affbench.base.errors import AffbenchError, DataError
from affbench.base.store import temporary_folder, writing

MAT_LIMIT = 2**31  # bytes of one .mat file when unpacked: MATLAB's own limit for a v5 variable
ARCHIVE_LIMIT = 2**33  # bytes of all members of an archive when unpacked; affNIST's largest has about 4 GB
MEMBER_COUNT = 4096  # members of an archive
ELEMENT_COUNT = 100_000  # arrays in a .mat file, so that empty ones cannot fill the memory
DEPTH = 8  # nested structs and cells
BLOCK = 1 << 20
HDF5_RATIO = 1100  # deflate packs at most 1032:1, so a larger claim is no data

Array: TypeAlias = npt.NDArray[Any]
Variables: TypeAlias = "dict[str, Array | Variables | None]"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}  # by miTYPE
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)
_COMPLEX = 0x0800


class _DamagedError(Exception):
    """What is wrong with a file, to go into one sentence."""


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever reading a bad file may raise into one clear sentence."""
    try:
        yield
    except AffbenchError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except MemoryError as error:
        raise DataError(f"{path} wants more memory than there is, or is damaged.") from error
    # scipy, h5py, zipfile, zlib and NumPy raise nearly anything on hostile bytes.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path} is not {kind}, or is damaged ({reason}); fetch it again.") from error


def read_mat_variables(path: Path, limit: int = MAT_LIMIT) -> Variables:
    """The variables of a MATLAB file of version 5, 7 or 7.3."""
    with reading(path, "a MATLAB file"):
        with path.open("rb") as file:
            head = file.read(520)
        if head.startswith(_HDF5_SIGNATURE) or head[512:] == _HDF5_SIGNATURE:
            return _read_hdf5(path, min(limit, HDF5_RATIO * path.stat().st_size))
        return _read_mat5(path, head, limit)


def _read_mat5(path: Path, head: bytes, limit: int) -> Variables:
    from scipy.io import loadmat  # only this needs it, and it takes long to import

    if len(head) < 128 or head[126:128] not in (b"IM", b"MI"):
        raise _DamagedError("its header is not that of MATLAB 5, 7 or 7.3")
    with path.open("rb") as file:
        _inspect_mat5(file, path.stat().st_size, "<" if head[126:128] == b"IM" else ">", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variable that comes twice, say; what matters becomes an error
        loaded = loadmat(path, mat_dtype=False, squeeze_me=False, chars_as_strings=False)
    return {name: _plain(value) for name, value in loaded.items() if not name.startswith("__")}


def _plain(value: Any, depth: int = 0) -> Array | Variables | None:
    """Numbers as an array, a 1×1 struct as a dict, anything else as None; unwraps arrays that hold one object."""
    while isinstance(value, np.ndarray) and value.dtype == object and value.size == 1 and depth < 2 * DEPTH:
        value, depth = value.item(), depth + 1
    if isinstance(value, np.void):
        value = np.array(value)
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.names is not None:
        if value.size != 1 or depth >= 2 * DEPTH:
            return None
        return {name: _plain(value[name].item(), depth + 1) for name in value.dtype.names}
    return value if value.dtype.kind in "buif" else None


def _inspect_mat5(file: IO[bytes], size: int, order: str, limit: int) -> None:
    """Walk all elements of a version 5 or 7 file, so that scipy only ever sees a well-formed one."""
    budget = [ELEMENT_COUNT]
    start, left = 128, limit
    while start < size:
        file.seek(start)
        tag = file.read(8)
        if len(tag) != 8:
            raise _DamagedError("it ends too early")
        kind, length = struct.unpack(f"{order}II", tag)
        if kind not in (_MATRIX, _COMPRESSED):
            raise _DamagedError("it has an unknown element")
        if length > size - start - 8:
            raise _DamagedError("it ends too early")
        if kind == _COMPRESSED:
            content: bytes | bytearray = _inflated(file, length, left)
        else:
            file.seek(start)
            content = file.read(min(8 + length, left + 1))
        left -= len(content)
        if left < 0:
            raise _DamagedError(f"it unpacks to more than {limit:,} bytes")
        _Variable(content, order, budget).inspect(0)
        start += 8 + length


def _inflated(file: IO[bytes], size: int, most: int) -> bytearray:
    """What a compressed element unpacks to, or a little more than `most` of it."""
    packed, content, unpacking = file.read(size), bytearray(), zlib.decompressobj()
    while len(content) <= most:
        block = unpacking.decompress(packed, BLOCK)
        packed = unpacking.unconsumed_tail
        if not (block or packed):
            break
        content += block
    return content


class _Variable:
    """An unpacked variable of a .mat file, walked from its first byte to its last."""

    def __init__(self, content: bytes | bytearray, order: str, budget: list[int]) -> None:
        self._content, self._order, self._budget = memoryview(content), order, budget
        self._position = 0

    def _take(self, n: int) -> memoryview:
        self._position += n
        if self._position > len(self._content):
            raise _DamagedError("it ends too early")
        return self._content[self._position - n : self._position]

    def _numbers(self, data: memoryview, kind: str = "I") -> tuple[int, ...]:
        return struct.unpack(f"{self._order}{len(data) // 4}{kind}", data[: len(data) // 4 * 4])

    def _element(self, most: int = MAT_LIMIT) -> tuple[int, memoryview]:
        """Type and content of a data element."""
        kind, length = self._numbers(self._take(8))
        small = kind >> 16
        if small:
            kind, length = kind & 0xFFFF, small
        if length > (4 if small else most):
            raise _DamagedError("a name or a header in it is too long")
        if small:
            return kind, self._content[self._position - 4 :][:small]
        return kind, self._take(length + -length % 8)[:length]

    def inspect(self, depth: int) -> None:
        """Check one array and all arrays in it."""
        self._spend(1)
        if depth > DEPTH:
            raise _DamagedError(f"its structs are nested more than {DEPTH} deep")
        kind, length = self._numbers(self._take(8))
        if kind != _MATRIX:
            raise _DamagedError("it has an unknown element where an array should be")
        if not length:
            return
        end = self._position + length
        flags = next(iter(self._numbers(self._element(8)[1])), 0)
        shape = self._numbers(self._element(4 * 32)[1], "i")
        if len(shape) < 2 or min(shape) < 0:
            raise _DamagedError("an array in it has an impossible shape")
        self._element(4096)  # its name
        self._inspect_values(flags, math.prod(shape), depth)
        if self._position != end and (depth or self._position > end):
            raise _DamagedError("the sizes in it contradict each other")

    def _inspect_values(self, flags: int, count: int, depth: int) -> None:
        matlab_class = flags & 0xFF
        if matlab_class in _NUMERIC:
            for _ in range(2 if flags & _COMPLEX else 1):
                item, values = self._element()
                if item not in _ITEM_BYTES or _ITEM_BYTES[item] * count != len(values):
                    raise _DamagedError("an array in it has another size than its shape says")
        elif matlab_class == _CHAR:
            if count > len(self._element()[1]):
                raise _DamagedError("a text in it is shorter than its shape says")
        elif matlab_class in (_CELL, _STRUCT):
            if matlab_class == _STRUCT:
                width = next(iter(self._numbers(self._element(4)[1])), 0)
                names = len(self._element(1 << 16)[1])
                if not 0 < width <= 1024 or names % width:
                    raise _DamagedError("the field names of a struct in it are damaged")
                count *= names // width
            self._spend(0, count)
            for _ in range(count):
                self.inspect(depth + 1)
        else:
            raise _DamagedError("it holds objects, functions or sparse arrays, which no affNIST file does")

    def _spend(self, arrays: int, ahead: int = 0) -> None:
        """Count arrays; `ahead` of them must be left over."""
        self._budget[0] -= arrays
        if self._budget[0] < ahead:
            raise _DamagedError(f"it holds more than {ELEMENT_COUNT:,} arrays")


def _read_hdf5(path: Path, limit: int) -> Variables:
    """The variables of a version 7.3 file; only plain datasets inside the file itself are read."""
    left = [limit, ELEMENT_COUNT]

    def read(group: Any, depth: int) -> Variables:
        if depth > DEPTH:
            raise _DamagedError(f"its groups are nested more than {DEPTH} deep")
        found: Variables = {}
        for name in group:
            left[1] -= 1
            if left[1] < 0:
                raise _DamagedError(f"it holds more than {ELEMENT_COUNT:,} arrays")
            if name.startswith("#"):  # what MATLAB keeps references in
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _DamagedError(f"{name} is a link, which no MATLAB file holds")
            member = group[name]
            if isinstance(member, h5py.Group):
                found[name] = read(member, depth + 1)
            elif isinstance(member, h5py.Dataset):
                found[name] = numbers(name, member)
            else:
                found[name] = None
        return found

    def numbers(name: str, member: Any) -> Array | None:
        if member.external or member.is_virtual:
            raise _DamagedError(f"the values of {name} lie in another file")
        if member.dtype.kind not in "buif" or member.shape is None:
            return None
        left[0] -= member.nbytes
        if left[0] < 0:
            raise _DamagedError(f"it unpacks to more than {limit:,} bytes")
        values: Array = member[()]
        if "MATLAB_empty" in member.attrs:
            return np.empty((0, 0), values.dtype)
        return np.asarray(values).T  # MATLAB writes its axes in reverse

    with h5py.File(path, "r", locking=False) as file:
        return read(file, 0)


def check_archive(path: Path, limit: int = ARCHIVE_LIMIT) -> list[str]:
    """The names of the regular files in a .zip archive, if it is safe to open."""

    def refuse(what: str) -> NoReturn:
        raise DataError(f"{path} is not opened because {what}.")

    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MEMBER_COUNT:
            refuse(f"it has {len(members):,} members, more than {MEMBER_COUNT:,}")
        total = sum(member.file_size for member in members)
        if total > limit:
            refuse(f"it unpacks to {total:,} bytes, more than {limit:,}")
        for member in members:
            name = member.filename.replace("\\", "/")
            if name.startswith("/") or ":" in name or ".." in PurePosixPath(name).parts:
                refuse(f"its member {member.filename!r} climbs out of the folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                refuse(f"its member {member.filename!r} is a symbolic link")
            if member.flag_bits & 1:
                refuse(f"its member {member.filename!r} is encrypted")
        names = [member.filename for member in members if not member.is_dir()]
    return [name for name in names if not name.startswith("__MACOSX/") and not PurePosixPath(name).name.startswith(".")]


@contextlib.contextmanager
def extracted(path: Path, name: str, limit: int = MAT_LIMIT) -> Iterator[Path]:
    """One member of an archive that `check_archive` passed, as a temporary file."""
    suffix = PurePosixPath(name).suffix
    with temporary_folder() as folder:
        target = folder / f"member{suffix}"
        with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive, archive.open(name) as member:
            size = 0
            with writing(target), target.open("wb") as file:  # closing it writes as well
                while True:
                    with reading(path, "a zip archive"):
                        block = member.read(BLOCK)
                    if not block:
                        break
                    size += len(block)
                    if size > limit:
                        raise DataError(f"{path} is not opened because {name} unpacks to more than {limit:,} bytes.")
                    file.write(block)
        yield target


class NpzArray:
    """One array of an .npz archive, read from first to last without ever being whole in memory."""

    def __init__(self, path: Path, name: str = "arr_0", limit: int = ARCHIVE_LIMIT) -> None:
        self.path, self.name = path, name
        names = check_archive(path, limit)
        if f"{name}.npy" not in names:
            raise DataError(f"{path} has no array {name}; it has {', '.join(names[:5]) or 'none'}.")
        with reading(path, "a NumPy archive"), self._open() as (shape, columns, dtype, _):
            self.shape, self.dtype = shape, dtype
        if dtype.hasobject or dtype.kind not in "buif":
            raise DataError(f"{path} is not read because {name} holds {dtype} values; only numbers are safe to load.")
        if columns and len(shape) > 1:
            raise DataError(f"{path} is not read because {name} is in column order; save it again in row order.")
        if not shape or min(shape) < 0 or math.prod(shape) * dtype.itemsize > limit:
            raise DataError(f"{path} is not read because {name} has the shape {shape}.")

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[tuple[int, ...], bool, np.dtype[Any], IO[bytes]]]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            yield *read_header(file), file

    def rows(self, count: int) -> Iterator[Array]:
        """The array in parts of at most `count` rows (along its first axis)."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with reading(self.path, "a NumPy archive"), self._open() as (_, _, _, file):
            for start in range(0, self.shape[0], count):
                n = min(count, self.shape[0] - start)
                data = file.read(n * row)
                if len(data) != n * row:
                    raise _DamagedError("it ends too early")
                yield np.frombuffer(data, self.dtype).reshape(n, *self.shape[1:])
            if file.read(1):  # also makes zipfile compare the checksum
                raise _DamagedError("it goes on after its last value")
