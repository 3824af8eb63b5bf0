"""A local HTTP server that stands in for the internet, and can fail in every way the internet does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request as the site says."""

    server: Site

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        answers = self.server.answers.get(self.path, [Site.status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True

    do_CONNECT = do_GET  # noqa: N815 - what a proxy is asked for

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def start(self, code: int, **headers: Any) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


class Site(ThreadingHTTPServer):
    """A server on this machine, empty at first.

    Attributes
    ----------
    url
        Its address, ending in a slash.
    answers
        Path to the answers in turn; the last one stays.
    requests
        (path, Range header) of every request so far.
    stopped
        Set when the test is over.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.stopped = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of these tests."""

    def add(self, name: str, *answers: Answer | bytes) -> str:
        """Answers for one path; returns its address."""
        self.answers[f"/{name}"] = [self.serve(each) if isinstance(each, bytes) else each for each in answers]
        return self.url + name

    @staticmethod
    def status(code: int, **headers: Any) -> Answer:
        """An empty answer with this status."""
        return lambda handler: handler.start(code, Content_Length=0, **headers)

    @staticmethod
    def redirect(location: str) -> Answer:
        """A redirect to an address."""
        return Site.status(302, Location=location)

    @staticmethod
    def serve(
        content: bytes,
        *,
        stop: int | None = None,
        ranges: bool = True,
        length: bool = True,
        pause: float = 0.0,
        **headers: Any,
    ) -> Answer:
        """The content, broken off before byte `stop`, after a pause in seconds."""

        def answer(handler: Handler) -> None:
            handler.server.stopped.wait(pause)
            asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
            same = handler.headers.get("If-Range") in (None, headers.get("ETag"), headers.get("Last_Modified"))
            first = int(asked[1]) if asked and ranges and same else 0
            size = {"Content_Length": len(content) - first} if length else {}
            if first > len(content):
                handler.start(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            elif first:
                whole = f"bytes {first}-{len(content) - 1}/{len(content)}"
                handler.start(206, Content_Range=whole, **size, **headers)
            else:
                handler.start(200, **size, **headers)
            handler.wfile.write(content[first:stop])

        return answer

    @staticmethod
    def chunked(content: bytes, *, stop: int | None = None) -> Answer:
        """The content in chunks of 1,000 bytes, broken off before byte `stop`."""

        def answer(handler: Handler) -> None:
            handler.start(200, Transfer_Encoding="chunked")
            for first in range(0, len(content) if stop is None else stop, 1000):
                part = content[first : first + 1000]
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            if stop is None:
                handler.wfile.write(b"0\r\n\r\n")

        return answer

    @staticmethod
    def trickle(content: bytes, pause: float) -> Answer:
        """One byte at a time, with a pause in seconds after each."""

        def answer(handler: Handler) -> None:
            handler.start(200, Content_Length=len(content))
            for n in range(len(content)):
                handler.wfile.write(content[n : n + 1])
                if handler.server.stopped.wait(pause):
                    return

        return answer

    @staticmethod
    def endless(handler: Handler) -> None:
        """Bytes until the client hangs up."""
        handler.start(200)
        while not handler.server.stopped.is_set():
            handler.wfile.write(b"x" * 65536)

    @staticmethod
    def silence(handler: Handler) -> None:
        """The beginning of an answer, then nothing."""
        handler.start(200, Content_Length=100)
        handler.wfile.write(b"half")
        handler.server.stopped.wait(5)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that can fail in every way the internet does."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
    thread.join()
