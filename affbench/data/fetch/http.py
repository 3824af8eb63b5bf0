"""One file over http: attempts with back-off, resumed where the server allows it, within limits of time and size."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import getproxies

import requests
import urllib3

from affbench.base import store
from affbench.base.errors import ArtefactError
from affbench.base.progress import Progress
from affbench.base.version import __version__
from affbench.data.fetch.sources import RemoteFile

_BLOCK = 1 << 16
_MAX_REDIRECTS = 5
_CONNECT = 10.0  # seconds to wait for a connection
_MOST_PATIENT = 60.0  # seconds; a server that asks for a longer pause (Retry-After) is not waited for any longer
_FOR_NOW = {408, 416, 425, 429, 500, 502, 503, 504}
_PROXY = "check the environment variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY"


@dataclass(frozen=True)
class Patience:
    """How long to go on trying."""

    attempts: int = 4  # at one address that bring nothing new before it is given up
    wait: float = 0.5  # seconds before the second attempt; doubled before each one after
    silence: float = 20.0  # seconds without a byte after which an attempt has failed
    total: float = 1800.0  # seconds for one file, over all its addresses and attempts


@dataclass(eq=False)
class Refused(Exception):  # noqa: N818  (an outcome that the next source may make good, not an error yet)
    """An address, or a file in a mirror, that did not deliver; the reason completes "ADDRESS …"."""

    reason: str
    retry: bool = False  # another attempt may help
    wait: float = 0.0  # seconds the server asked for before it
    unreachable: bool = False  # the host did not answer at all

    def __str__(self) -> str:
        return self.reason


def shown(url: str) -> str:
    """An address without user name, password, query and fragment, fit for messages and records."""
    return re.sub(r"(?<=://)[^/?#]*@", "", re.split("[?#]", url, maxsplit=1)[0])


def unanswered(error: Exception) -> Refused:
    """Why a request had no answer, in a few words."""
    words = str(error)
    seen: BaseException | None = error
    while seen is not None:  # what the operating system, the TLS library or the proxy said is at the bottom
        words = (seen.strerror if isinstance(seen, OSError) and seen.strerror else None) or words
        words = str(seen) if "Tunnel connection failed" in str(seen) else words
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, requests.exceptions.ProxyError):
        return Refused(f"cannot be reached through the proxy ({words}); {_PROXY}", unreachable=True)
    if isinstance(error, requests.exceptions.SSLError):
        return Refused(f"has no certificate that can be trusted ({words}); REQUESTS_CA_BUNDLE may name your network's")
    if isinstance(error, requests.exceptions.Timeout):
        return Refused("does not answer in time", retry=True, unreachable=True)
    if isinstance(error, requests.exceptions.ConnectionError):
        return Refused(f"cannot be reached ({words})", retry=True, unreachable=True)
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return Refused(f"cannot be asked ({error}); check the environment variable REQUESTS_CA_BUNDLE")
    return Refused(f"is no address that can be fetched ({error})" + (f"; {_PROXY}" if getproxies() else ""))


class Transfer:
    """A downloader for pooch that goes on where an earlier attempt, or an earlier run, stopped.

    Bytes that have come so far lie in `part`. `deadline` is a reading of `time.monotonic`. After a call, `resumed`
    tells whether more than one answer made the file.
    """

    def __init__(self, file: RemoteFile, part: Path, patience: Patience, deadline: float, progress: Progress) -> None:
        self.resumed = False
        self._file, self._part, self._patience, self._deadline = file, part, patience, deadline
        self._progress = progress
        self._most = file.size or file.max_bytes
        self._about = part.with_name(f"{part.name}.json")  # the address, and what shows whether its content changed
        self._over = f"the time limit of {patience.total:g} s for a file is over"

    def __call__(self, url: str, output: str, _: object = None) -> None:
        """Download `url`; `Refused` where the address cannot deliver."""
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
                pause = max(self._patience.wait * 2 ** (tries - 1), min(refused.wait, _MOST_PATIENT))
                over = f", and {self._over}" if time.monotonic() + pause >= self._deadline else ""
                if over or tries >= self._patience.attempts:
                    reason = f"{refused} ({tries} attempts){over}"
                    raise Refused(reason, unreachable=refused.unreachable) from refused
                time.sleep(pause)
        self._part.replace(output)
        self._about.unlink()

    def discard(self) -> None:
        """Forget what has come so far."""
        self._part.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def _attempt(self, url: str) -> None:
        start, headers = self._size(), {"User-Agent": f"affbench/{__version__}", "Accept-Encoding": "identity"}
        validator = self._validator(url) if start else None
        # Without a checksum only the server can tell that the rest belongs to the same file.
        if start and (validator or self._file.published):
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
        with requests.Session() as session, self._open(session, url, headers) as response:
            start, total = self._extent(response, start)
            tag = response.headers.get("ETag", "")
            validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")  # weak tags don't do
            store.write_json(self._about, {"url": shown(url), "validator": validator})
            self._receive(response, start, total)

    def _validator(self, url: str) -> str | None:
        """What the server said of the content of which a part is there."""
        with contextlib.suppress(ArtefactError):
            about = store.read_json(self._about)
            return about.get("validator") if about.get("url") == shown(url) else None
        return None

    def _open(self, session: requests.Session, url: str, headers: dict[str, str]) -> Any:
        """The answer to a request, after redirects that never lead from https to anything else."""
        schemes = ("https://", "http://") if url.startswith("http://") else ("https://",)
        for _ in range(_MAX_REDIRECTS + 1):
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise Refused(f"did not deliver: {self._over}")
            timeout = (min(_CONNECT, self._patience.silence, left), min(self._patience.silence, left))
            if not url.lower().startswith(schemes):
                raise Refused(f"leads to {shown(url)}, but only https addresses are followed")
            try:
                response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
                if not response.is_redirect:
                    return response
                url = urljoin(url, response.headers["Location"])
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
                raise unanswered(error) from error
            response.close()
        raise Refused(f"redirects more than {_MAX_REDIRECTS} times")

    def _extent(self, response: Any, start: int) -> tuple[int, int | None]:
        """The position of the answer's first byte in the file, and the file's size where it is told."""
        status, told = response.status_code, response.headers
        other_range = status == 206 and not told.get("Content-Range", "").startswith(f"bytes {start}-")
        if status == 416 or other_range:  # what is there is longer than the file, or no beginning of it
            self.discard()
            raise Refused(f"answers with another range than asked for (HTTP {status})", retry=True)
        if status not in (200, 206):
            wait = 0.0
            with contextlib.suppress(urllib3.exceptions.InvalidHeader):
                wait = urllib3.Retry().parse_retry_after(told.get("Retry-After", "0"))
            hint = f"; {_PROXY}" if status == 407 else ""
            raise Refused(f"answers {status} {responses.get(status, '')}{hint}", status in _FOR_NOW, wait)
        if told.get("Content-Type", "").startswith("text/html"):
            raise Refused("answers with a web page instead of the file")
        start = start if status == 206 else 0
        length = told.get("Content-Length", "")
        if not (length.isdecimal() or self._file.published or "chunked" in told.get("Transfer-Encoding", "")):
            raise Refused("announces no length, and no checksum would tell a broken transfer")
        total = start + int(length) if length.isdecimal() else None
        if total is not None and total > self._most:
            self.discard()
            raise Refused(f"has {total:,} bytes, more than the {self._most:,} allowed")
        return start, total

    def _receive(self, response: Any, start: int, total: int | None) -> None:
        done = start
        self.resumed = start > 0
        # What has arrived, not a full block, so that a server that trickles meets the time limit.
        read = getattr(response.raw, "read1", response.raw.read)
        with (
            self._part.open("ab" if start else "wb") as file,
            self._progress.task(self._file.name, total, "bytes") as task,
        ):
            task.advance(start)
            while block := self._read(read, f"{done:,} bytes" if total is None else f"{done:,} of {total:,} bytes"):
                done += len(block)
                if done > self._most:
                    file.close()
                    self.discard()
                    raise Refused(f"sends more than the {self._most:,} bytes allowed")
                file.write(block)
                task.advance(len(block))
        if not done:
            raise Refused("sends an empty file")

    def _read(self, read: Any, so_far: str) -> bytes:
        if time.monotonic() >= self._deadline:
            raise Refused(f"was too slow: {self._over} after {so_far} (kept, to go on from there)")
        try:
            return bytes(read(_BLOCK, decode_content=False))  # a .gz file is wanted as it is
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Refused(f"fell silent after {so_far}", retry=True) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Refused(f"broke off after {so_far}", retry=True) from error

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0
