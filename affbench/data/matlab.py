"""A program that unpacks one .mat file: hostile bytes crash scipy, so no other process lets it see them.

    python matlab.py FILE

It prints a line of JSON: what is wrong, or the variables, a struct as an object, an array of numbers as its type and
shape, anything else as null. The values of the arrays follow in the same order, each with its axes reversed.
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 3 << 30  # bytes of memory; MATLAB allows 2 GiB for a variable
DEPTH = 8  # nested structs and groups


def main(path: str) -> None:
    """Print what is in a file of version 5, 7 or 7.3."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not every system has it
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    arrays: list[Any] = []
    try:
        with Path(path).open("rb") as file:
            first = file.read(128)[124:] in (b"\0\1IM", b"\1\0MI")  # version 1.0 of the format
        told = {"variables": (read_mat5 if first else read_hdf5)(path, arrays)}
    except Exception as error:  # scipy and h5py raise nearly anything on hostile bytes
        full = isinstance(error, MemoryError)
        told, arrays = {"error": f"it unpacks to more than {LIMIT:,} bytes" if full else str(error)}, []
    sys.stdout.buffer.write(f"{json.dumps(told)}\n".encode())
    for values in arrays:
        sys.stdout.buffer.write(values.data)


def add(values: Any, arrays: list[Any]) -> tuple[str, tuple[int, ...]]:
    """Put an array, its axes reversed, to the others."""
    arrays.append(np.ascontiguousarray(values))
    return values.dtype.str, values.shape


def read_mat5(path: str, arrays: list[Any]) -> Any:
    """The variables of version 5 or 7."""
    from scipy.io import loadmat

    def plain(value: Any, depth: int) -> Any:
        while isinstance(value, np.ndarray) and value.dtype == object and value.size == 1 and depth < DEPTH:
            value, depth = value.item(), depth + 1  # scipy wraps what is no number in arrays of one object
        if isinstance(value, np.void):
            value = np.array(value)
        if not isinstance(value, np.ndarray):
            return None
        if value.dtype.names is None:
            return add(value.T, arrays) if value.dtype.kind in "buif" else None
        if depth >= DEPTH:
            raise ValueError(f"its structs are nested more than {DEPTH} deep")
        return {name: plain(value[name].item(), depth + 1) for name in value.dtype.names} if value.size == 1 else None

    warnings.simplefilter("ignore")  # a variable that comes twice, say; what matters becomes an error
    loaded = loadmat(path, mat_dtype=False, squeeze_me=False, chars_as_strings=False)
    return {name: plain(value, 0) for name, value in loaded.items() if not name.startswith("__")}


def read_hdf5(path: str, arrays: list[Any]) -> Any:
    """The variables of version 7.3; only plain datasets inside the file itself are read."""

    import h5py

    def plain(member: Any, depth: int) -> Any:
        if isinstance(member, h5py.Group):
            if depth > DEPTH:
                raise ValueError(f"its groups are nested more than {DEPTH} deep")
            names = [name for name in member if not name.startswith("#")]  # there MATLAB keeps what cells refer to
            for name in names:
                if not isinstance(member.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name} is a link, which no MATLAB file holds")
            return {name: plain(member[name], depth + 1) for name in names}
        if not isinstance(member, h5py.Dataset) or member.shape is None or member.dtype.kind not in "buif":
            return None
        if member.external or member.is_virtual:
            raise ValueError(f"the values of {member.name} lie in another file")
        if member.nbytes > LIMIT:
            raise MemoryError
        empty = "MATLAB_empty" in member.attrs
        return add(np.empty((0, 0), member.dtype) if empty else np.asarray(member[()]), arrays)

    with h5py.File(path, "r", locking=False) as file:
        return plain(file, 0)


if __name__ == "__main__":
    main(sys.argv[1])
