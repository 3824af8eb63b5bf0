"""One file over http: attempts with back-off, resumed where the server allows it, within limits of time and size."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3

from affbench import __version__, store
from affbench.data.sources import RemoteFile
from affbench.progress import Progress

_BLOCK = 1 << 16
_MAX_REDIRECTS = 5
_CONNECT = 10.0  # seconds to wait for a connection
_MOST_PATIENT = 60.0  # seconds; a server that asks for a longer pause (Retry-After) is not waited for any longer

_ABSENT = {404, 410}
_FOR_NOW = {408, 425, 429, 500, 502, 503, 504}
_MEANING = {
    401: "asks for a password",
    403: "refuses access",
    404: "is not there",
    410: "is not there any more",
    429: "wants fewer requests",
    503: "is unavailable for now",
    504: "is unavailable for now",
}


@dataclass(frozen=True)
class Patience:
    """How long to go on trying.

    Attributes
    ----------
    attempts
        Attempts at one address that bring nothing new before it is given up, 1 or more.
    wait
        Seconds before the second attempt; doubled before each one after.
    silence
        Seconds without a byte after which an attempt has failed.
    total
        Seconds for one file, over all its addresses and attempts.
    """

    attempts: int = 4
    wait: float = 0.5
    silence: float = 20.0
    total: float = 1800.0


class Refused(Exception):  # noqa: N818  (an outcome that the next source may make good, not an error yet)
    """An address, or a file in a mirror, that did not deliver; the message completes "ADDRESS …".

    Parameters
    ----------
    reason
        Why.
    retry
        Whether another attempt may help.
    wait
        Seconds the server asked for before it.
    absent
        Whether there simply is no such file.
    unreachable
        Whether the host did not answer at all.
    """

    def __init__(
        self, reason: str, *, retry: bool = False, wait: float = 0.0, absent: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry = retry
        self.wait = wait
        self.absent = absent
        self.unreachable = unreachable


def shown(url: str) -> str:
    """An address without user name, password, query and fragment, fit for messages and records."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Transfer:
    """A downloader in pooch's sense, which also resumes: pooch's own always begins again.

    Parameters
    ----------
    file
        What is fetched: its size, limits and whether a checksum protects it.
    part
        Where the bytes lie that have come so far; what it holds from an earlier run is used if it can be.
    patience
        When to give up.
    deadline
        Reading of `time.monotonic` at which time is over.
    progress
        Receives progress in bytes.

    Attributes
    ----------
    resumed
        Whether the file was put together from more than one answer.
    digest
        Checksum of what came, as ``sha256:…`` or ``md5:…``, of the kind that is published.
    """

    def __init__(self, file: RemoteFile, part: Path, patience: Patience, deadline: float, progress: Progress) -> None:
        self.resumed = False
        self.digest = ""
        self._file = file
        self._part = part
        self._about = part.with_name(f"{part.name}.json")
        self._patience = patience
        self._deadline = deadline
        self._progress = progress

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        """Download `url` to the path `output_file`, as pooch asks.

        Raises
        ------
        Refused
            The address cannot deliver.
        StorageError
            The disk cannot take it.
        """
        tries, farthest = 0, self._size()
        while True:
            try:
                self._attempt(url)
                break
            except Refused as refused:
                if not refused.retry:
                    raise
                if self._size() > farthest:
                    tries, farthest = 0, self._size()
                tries += 1
                if tries >= self._patience.attempts:
                    raise Refused(f"{refused} ({tries} attempts)", unreachable=refused.unreachable) from refused
                pause = max(self._patience.wait * 2 ** (tries - 1), min(refused.wait, _MOST_PATIENT))
                if time.monotonic() + pause >= self._deadline:
                    raise Refused(f"{refused} ({tries} attempts), and {self._over()}") from refused
                time.sleep(pause)
        algorithm = "md5" if self._file.md5 and not self._file.sha256 else "sha256"
        self.digest = f"{algorithm}:{store.file_hash(self._part, algorithm)}"
        with store.writing(Path(output_file)):
            self._part.replace(output_file)
            self._about.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget what has come so far."""
        self._part.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def _attempt(self, url: str) -> None:
        start, headers = self._resumption(url)
        if start and start == self._file.size:
            self.resumed = True
            return  # all is there already: an earlier run ended between the last byte and the check
        with requests.Session() as session:
            response = self._open(session, url, headers)
            with response:
                self._check_status(response)
                start, total = self._extent(response, start)
                self._check_total(total)
                self._describe(url, response)
                self._receive(response, start, total)

    def _resumption(self, url: str) -> tuple[int, dict[str, str]]:
        """Where to go on, and the headers that ask for it."""
        headers = {"User-Agent": f"affbench/{__version__}", "Accept-Encoding": "identity"}
        start = self._size()
        if not start:
            return 0, headers
        about = self._read_about()
        validator = about.get("validator") if about.get("url") == shown(url) else None
        # Without a checksum only the server can tell that the rest belongs to the same file.
        if not (validator or self._file.published) or start > (self._file.size or start):
            self.discard()
            return 0, headers
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
        return start, headers

    def _open(self, session: Any, url: str, headers: Mapping[str, str]) -> Any:
        """The answer to a request, after redirects that never lead from https to anything else."""
        schemes = {"https", "http"} if urlsplit(url).scheme == "http" else {"https"}
        for _ in range(_MAX_REDIRECTS + 1):
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise Refused(f"did not deliver: {self._over()}")
            timeout = (min(_CONNECT, self._patience.silence, left), min(self._patience.silence, left))
            if urlsplit(url).scheme not in schemes:
                raise Refused(f"leads to {shown(url)}, but only https addresses are followed")
            try:
                response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
            except requests.exceptions.RequestException as error:
                raise _unanswered(error) from error
            if not response.is_redirect:
                return response
            url = urljoin(url, response.headers["Location"])
            response.close()
        raise Refused(f"redirects more than {_MAX_REDIRECTS} times")

    def _check_status(self, response: Any) -> None:
        status = int(response.status_code)
        if status in (200, 206):
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise Refused("answers with a web page instead of the file")
            return
        if status == 416:
            self.discard()  # what is there is longer than the file
        meaning = _MEANING.get(status, "cannot deliver")
        raise Refused(
            f"{meaning} (HTTP {status})",
            retry=status in _FOR_NOW or status == 416,
            wait=_retry_after(response.headers.get("Retry-After", "")),
            absent=status in _ABSENT,
        )

    def _extent(self, response: Any, start: int) -> tuple[int, int | None]:
        """The position of the answer's first byte in the file, and the file's size where it is told."""
        if response.status_code == 200:
            length = response.headers.get("Content-Length", "")
            if length.isdecimal():
                return 0, int(length)
            if not (self._file.published or "chunked" in response.headers.get("Transfer-Encoding", "")):
                raise Refused("announces no length, and no checksum would tell a broken transfer")
            return 0, None
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not told or int(told[1]) != start:
            self.discard()
            raise Refused("answers with another range than asked for", retry=True)
        return start, None if told[2] == "*" else int(told[2])

    def _check_total(self, total: int | None) -> None:
        if total is None:
            return
        if self._file.size is not None and total != self._file.size:
            self.discard()
            raise Refused(f"has something else: {total:,} bytes instead of {self._file.size:,}")
        if total > self._most:
            self.discard()
            raise Refused(f"has {total:,} bytes, more than the {self._most:,} allowed")

    def _receive(self, response: Any, start: int, total: int | None) -> None:
        done = start
        total = self._file.size if total is None else total
        self.resumed = start > 0
        # What has arrived, not a full block, so that a server that trickles meets the time limit.
        read = getattr(response.raw, "read1", response.raw.read)
        with (
            store.writing(self._part),
            self._part.open("ab" if start else "wb") as file,
            self._progress.task(self._file.name, total, "bytes") as task,
        ):
            task.advance(start)
            while block := self._read(read, done, total):
                done += len(block)
                if done > self._most:
                    file.close()
                    self.discard()
                    raise Refused(f"sends more than the {self._most:,} bytes allowed")
                file.write(block)
                task.advance(len(block))
        if not done:
            raise Refused("sends an empty file")
        if total is not None and done < total:
            raise _broken(done, total)

    def _read(self, read: Any, done: int, total: int | None) -> bytes:
        if time.monotonic() >= self._deadline:
            raise Refused(f"was too slow: {self._over()} after {_amount(done, total)} (kept, to go on from there)")
        try:
            return bytes(read(_BLOCK, decode_content=False))  # a .gz file is wanted as it is
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Refused(
                f"fell silent after {_amount(done, total)}", retry=time.monotonic() < self._deadline
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _broken(done, total) from error

    @property
    def _most(self) -> int:
        return self._file.size or self._file.max_bytes

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _over(self) -> str:
        return f"the time limit of {self._patience.total:g} s for a file is over"

    def _describe(self, url: str, response: Any) -> None:
        """Note which content the part belongs to, for a later run."""
        tag = response.headers.get("ETag", "")
        validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")  # weak tags don't do
        store.write_json(self._about, {"url": shown(url), "validator": validator})

    def _read_about(self) -> dict[str, Any]:
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}


def _amount(done: int, total: int | None) -> str:
    return f"{done:,} bytes" if total is None else f"{done:,} of {total:,} bytes"


def _broken(done: int, total: int | None) -> Refused:
    return Refused(f"broke off after {_amount(done, total)}", retry=True)


def _unanswered(error: Exception) -> Refused:
    """Why there was no answer, in a few words."""
    if isinstance(error, requests.exceptions.SSLError):
        return Refused(f"has no certificate that can be trusted ({_root(error)})")
    if isinstance(error, requests.exceptions.Timeout):
        return Refused("does not answer in time", retry=True, unreachable=True)
    if isinstance(error, requests.exceptions.ConnectionError):
        return Refused(f"cannot be reached ({_root(error)})", retry=True, unreachable=True)
    return Refused(f"is no address that can be fetched ({error})")


def _root(error: BaseException) -> str:
    """The words of the operating system or the TLS library at the bottom of an error."""
    words = type(error).__name__
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            words = seen.strerror
        seen = seen.__cause__ or seen.__context__
    return words


def _retry_after(value: str) -> float:
    """Seconds to wait, from a header that holds seconds or a date; 0 where it holds neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
