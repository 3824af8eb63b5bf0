"""The errors affbench raises on purpose: each message is the whole story, and the command line prints it as it is."""

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class AffbenchError(Exception):
    """Base of every deliberate error: the message says what happened, in which file or option, and what to do next."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Names from hostile files may hold line breaks and terminal sequences; a message is one line of plain text.
        super().__init__("".join(char if char.isprintable() else " " for char in str(message)))


class UsageError(AffbenchError):
    """A name, key or value that affbench does not accept, wherever it was given."""

    exit_code = 2


class DataError(AffbenchError):
    """Data that is missing, damaged or not what it says it is."""


class DownloadError(DataError):
    """No source could deliver a file."""


class ArtefactError(AffbenchError):
    """A cached artefact that is missing, damaged, or made by something else."""


class StorageError(AffbenchError):
    """A file or folder that cannot be written."""


class DeviceError(AffbenchError):
    """A device or precision this machine does not have."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'capsnet'?"`` where a known name or its beginning is close, else ``"known: a, b, c"``."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    close = close or [own for own in names if difflib.get_close_matches(name, [own[: len(name)]], cutoff=0.75)]
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def reason(error: BaseException) -> str:
    """What code of somebody else raised, in one line: type, message, and the last line of theirs on the way there."""
    installed = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<")
    theirs = [
        f" ({Path(frame.filename).name}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(installed) and "-packages" not in frame.filename
    ]
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return text.rstrip(": .") + "".join(theirs[-1:])
