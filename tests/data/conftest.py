"""A local HTTP server that stands in for the internet, and can fail in every way the internet does."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request as its `Site` says."""

    site: Site

    def do_GET(self) -> None:
        self.site.requests.append((self.path, self.headers.get("Range")))
        answers = self.site.answers.get(self.path)
        if not answers:
            status(404)(self)
        else:
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def start(self, code: int, **headers: Any) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of these tests."""


class Site:
    """What the server has.

    Attributes
    ----------
    url
        Its address, ending in a slash.
    answers
        Path to the answers in turn; the last one stays.
    requests
        (path, Range header) of every request so far.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str | None]] = []

    def add(self, name: str, *answers: Answer | bytes) -> str:
        """Answers for one path; returns its address."""
        self.answers[f"/{name}"] = [serve(each) if isinstance(each, bytes) else each for each in answers]
        return self.url + name


def status(code: int, **headers: Any) -> Answer:
    """An empty answer with this status."""
    return lambda handler: handler.start(code, Content_Length=0, Connection="close", **headers)


def redirect(location: str) -> Answer:
    return status(302, Location=location)


def serve(
    content: bytes, *, stop: int | None = None, ranges: bool = True, length: bool = True, **headers: Any
) -> Answer:
    """The content, broken off after `stop` bytes of the file, with or without ranges and a Content-Length."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        validator = handler.headers.get("If-Range")
        same = validator is None or validator == headers.get("ETag")
        first = int(asked[1]) if asked and ranges and same else 0
        extra = dict(headers)
        if length:
            extra["Content_Length"] = len(content) - first
        if asked and ranges and same:
            if first >= len(content):
                handler.start(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
                return
            handler.start(206, Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}", **extra)
        else:
            handler.start(200, **extra)
        handler.wfile.write(content[first:stop])
        handler.close_connection = True

    return answer


def endless(handler: Handler) -> None:
    """Bytes until the client hangs up."""
    handler.start(200)
    while not handler.server.stopped.is_set():  # type: ignore[attr-defined]
        handler.wfile.write(b"x" * 65536)


def trickle(content: bytes, pause: float) -> Answer:
    """One byte at a time."""

    def answer(handler: Handler) -> None:
        handler.start(200, Content_Length=len(content))
        for n in range(len(content)):
            handler.wfile.write(content[n : n + 1])
            if handler.server.stopped.wait(pause):  # type: ignore[attr-defined]
                return

    return answer


def silence(handler: Handler) -> None:
    """Half an answer, then nothing."""
    handler.start(200, Content_Length=100)
    handler.wfile.write(b"half")
    handler.server.stopped.wait(5)  # type: ignore[attr-defined]


def slowly(content: bytes, seconds: float) -> Answer:
    """The content, after a while."""

    def answer(handler: Handler) -> None:
        time.sleep(seconds)
        serve(content)(handler)

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on this machine, empty at first."""
    handler = type("SiteHandler", (Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    found = Site(f"http://127.0.0.1:{server.server_port}/")
    handler.site = found  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()
