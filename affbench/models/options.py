"""Checks of model options: each returns the value in its final type or raises one clear sentence."""

from collections.abc import Collection, Iterable

from affbench.base.errors import UsageError, nearest


def whole(name: str, value: object, minimum: int = 1) -> int:
    """A whole number of at least ``minimum``; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UsageError(f"{name} must be a whole number of at least {minimum}, not {value!r}.")
    return value


def wholes(name: str, value: object, length: int | None = None) -> tuple[int, ...]:
    """A list or tuple of whole numbers of at least 1, of the given length if there is one."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise UsageError(f"{name} must be a list of whole numbers, not {value!r}.")
    values = tuple(value)
    if length is not None and len(values) != length:
        raise UsageError(f"{name} must list {length} whole numbers, not {value!r}.")
    return tuple(whole(f"each of {name}", item) for item in values)


def number(name: str, value: object, minimum: float, below: float = float("inf")) -> float:
    """A number from ``minimum`` up to, but not including, ``below``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < below:
        limits = f"at least {minimum:g}" + (f" and below {below:g}" if below < float("inf") else "")
        raise UsageError(f"{name} must be a number of {limits}, not {value!r}.")
    return float(value)


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that merely counts as such."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, not {value!r}.")
    return value


def choice(name: str, value: object, known: Collection[str]) -> str:
    """One of the known words."""
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{name} {value!r} is unknown: {nearest(str(value), known)}")
    return value
