"""One file over http: attempts with back-off, resumed where the server allows it, within limits of time and size."""

import re
import time
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import getproxies

import requests
import urllib3

from affbench.base import store
from affbench.base.progress import Progress
from affbench.base.version import __version__
from affbench.data.fetch.sources import RemoteFile

_BLOCK = 1 << 16
_MAX_REDIRECTS = 5
_CONNECT = 10.0  # seconds to wait for a connection
_MOST_PATIENT = 60.0  # seconds; a server that asks for a longer pause (Retry-After) is not waited for any longer
_FOR_NOW = {408, 416, 425, 429, 500, 502, 503, 504}
_PROXY = "check the proxy that the environment variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY name"


@dataclass(frozen=True)
class Patience:
    """How long to go on trying."""

    attempts: int = 4  # at one address that bring nothing new before it is given up
    wait: float = 0.5  # seconds before the second attempt; doubled before each one after
    silence: float = 20.0  # seconds without a byte after which an attempt has failed
    total: float = 1800.0  # seconds for one file at one address, over all attempts


class Refused(Exception):  # noqa: N818  (an outcome that the next source may make good, not an error yet)
    """An address, or a file in a mirror, that did not deliver; the text completes "ADDRESS …"."""

    def __init__(self, text: str = "", retry: bool = False, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(text)
        self.retry = retry  # another attempt may help
        self.wait = wait  # seconds the server asked for before it
        self.unreachable = unreachable  # the host did not answer at all


def shown(url: str) -> str:
    """An address without user name, password, query and fragment, fit for messages and records."""
    return re.sub(r"(?<=://)[^/?#]*@", "", re.split("[?#]", url, maxsplit=1)[0])


def unanswered(error: Exception) -> Refused:
    """Why a request had no answer, in a few words."""
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper  # what the operating system, the TLS library or the proxy said is at the bottom
    words = getattr(cause, "strerror", None) or str(cause)
    proxy = f"; {_PROXY}" if getproxies() else ""
    of_requests = isinstance(error, requests.RequestException)
    if isinstance(error, requests.exceptions.SSLError) or (isinstance(error, OSError) and not of_requests):
        return Refused(
            f"cannot be trusted ({words}); check the certificates that REQUESTS_CA_BUNDLE names, if it is set"
        )
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        retry = not isinstance(error, requests.exceptions.ProxyError)
        return Refused(f"cannot be reached ({words}){proxy}", retry, unreachable=True)
    return Refused(f"is no address that can be fetched ({error}){proxy}")


@dataclass
class Transfer:
    """A downloader for pooch that goes on where an earlier attempt, or an earlier run, stopped."""

    file: RemoteFile
    part: Path  # holds the bytes that have come so far
    patience: Patience
    progress: Progress
    resumed: bool = False  # whether more than one answer made the file
    deadline: float = 0.0  # a reading of `time.monotonic`

    def __call__(self, url: str, output: str, _: object = None) -> None:
        """Download `url`; `Refused` where the address cannot deliver."""
        self.deadline = time.monotonic() + self.patience.total
        tries, farthest = 0, self._size()
        while True:
            try:
                self._attempt(url)
                self.part.replace(output)
                return
            except Refused as refused:
                if not refused.retry:
                    raise
                tries = 1 if self._size() > farthest else tries + 1
                farthest = max(farthest, self._size())
                pause = max(self.patience.wait * 2 ** (tries - 1), min(refused.wait, _MOST_PATIENT))
                late = time.monotonic() + pause >= self.deadline
                if late or tries >= self.patience.attempts:
                    within = f" within the time limit of {self.patience.total:g} s" if late else ""
                    reason = f"{refused} ({tries} attempts{within})"
                    raise Refused(reason, unreachable=refused.unreachable) from refused
                time.sleep(pause)

    def _attempt(self, url: str) -> None:
        start, headers = self._size(), {"User-Agent": f"affbench/{__version__}", "Accept-Encoding": "identity"}
        about = self.part.with_name(f"{self.part.name}.json")  # the address, and what shows whether its content changed
        known = store.read_json(about) if about.exists() else {}
        validator = known.get("validator") if known.get("url") == shown(url) else None
        # Without a checksum only the server can tell that the rest belongs to the same file.
        if start and (validator or self.file.published):
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
        most = self.file.max_bytes
        with self._open(url, headers) as response:
            start, total = self._extent(response, start)
            tag = response.headers.get("ETag", "")
            validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")  # weak tags don't do
            store.write_json(about, {"url": shown(url), "validator": validator})
            size = total or 0
            if size <= most:
                size = self._receive(response, start, total, most)
        if size > most:
            self.part.unlink(missing_ok=True)
            raise Refused(f"has {size:,} bytes, more than the {most:,} allowed")

    def _open(self, url: str, headers: dict[str, str]) -> requests.Response:
        """The answer to a request, after redirects that never lead from https to anything else."""
        schemes = ("https://", "http://") if url.startswith("http://") else ("https://",)
        timeout = (min(_CONNECT, self.patience.silence), self.patience.silence)
        for _ in range(_MAX_REDIRECTS + 1):
            if not url.lower().startswith(schemes):
                raise Refused(f"leads to {shown(url)}, but only https addresses are followed")
            try:
                response = requests.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
                if not response.is_redirect:
                    return response
                url = urljoin(url, response.headers["Location"])
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
                raise unanswered(error) from error
            response.close()
        raise Refused(f"redirects more than {_MAX_REDIRECTS} times")

    def _extent(self, response: requests.Response, start: int) -> tuple[int, int | None]:
        """The position of the answer's first byte in the file, and the file's size where it is told."""
        status, told = response.status_code, response.headers
        if status == 416 or (status == 206 and not told.get("Content-Range", "").startswith(f"bytes {start}-")):
            self.part.unlink(missing_ok=True)  # it is longer than the file, or no beginning of it
            raise Refused(f"answers with another range than asked for (HTTP {status})", retry=True)
        if status not in (200, 206):
            after, hint = told.get("Retry-After", ""), f"; {_PROXY}" if status == 407 else ""
            wait = float(after) if after.isdecimal() else 0.0
            raise Refused(f"answers {status} {responses.get(status, '')}{hint}", status in _FOR_NOW, wait)
        if told.get("Content-Type", "").startswith("text/html"):
            raise Refused("answers with a web page instead of the file")
        start = start if status == 206 else 0
        length = told.get("Content-Length", "")
        if not (length.isdecimal() or self.file.published or "chunked" in told.get("Transfer-Encoding", "")):
            raise Refused("announces no length, and no checksum would tell a broken transfer")
        return start, start + int(length) if length.isdecimal() else None

    def _receive(self, response: requests.Response, start: int, total: int | None, most: int) -> int:
        """Append what arrives to the part, to no more than a block above `most`; the number of bytes in it."""
        self.resumed = start > 0
        # What has arrived, not a full block, so that a server that trickles meets the time limit.
        read = getattr(response.raw, "read1", response.raw.read)
        done, of = start, "" if total is None else f" of {total:,}"
        with (
            self.part.open("ab" if start else "wb") as file,
            self.progress.task(self.file.name, total, "bytes") as task,
        ):
            task.skip(start)
            while done <= most:
                if time.monotonic() >= self.deadline:
                    limit = f"the time limit of {self.patience.total:g} s"
                    raise Refused(f"was too slow for {limit}: {done:,}{of} bytes came, and are kept to go on from")
                try:
                    block = read(_BLOCK, decode_content=False)  # a .gz file is wanted as it is
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    raise Refused(f"broke off after {done:,}{of} bytes", retry=True) from error
                if not block:
                    break
                done += len(block)
                file.write(block)
                task.advance(len(block))
        return done

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0
