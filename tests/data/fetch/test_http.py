from __future__ import annotations

import io
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from fetch_helpers import (
    CONTENT,
    QUICK,
    Recorder,
    checked,
    fetch_file,
    fetch_source,
    left_in,
    md5,
    sha256,
    source_of,
    trusted,
)

from affbench.base.errors import DownloadError
from affbench.data.fetch.http import Patience
from affbench.data.fetch.sources import RemoteFile


def test_404_is_told_at_once_and_503_is_tried_again(site: Any, tmp_path: Path) -> None:
    absent, away = site.url + "absent", site.add("away", site.status(503))
    with pytest.raises(DownloadError) as caught:
        fetch_source(source_of(checked(absent, away)), tmp_path, patience=QUICK)
    message = str(caught.value)
    assert f"{absent} answers 404 Not Found" in message
    assert f"{away} answers 503 Service Unavailable (3 attempts)" in message
    assert "--mirror" in message
    assert "https://example.org/set" in message
    assert [path for path, _ in site.requests] == ["/absent", "/away", "/away", "/away"]
    assert left_in(tmp_path) == []


def test_503_then_success(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", site.status(503), site.status(503, Retry_After=0), CONTENT))
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT


def test_pauses_double_and_a_server_may_ask_for_longer(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("affbench.data.fetch.http.time.sleep", pauses.append)
    busy = [site.status(503), site.status(503), site.status(503, Retry_After=7), CONTENT]
    fetch_file(checked(site.add("file.bin", *busy)), tmp_path, patience=replace(QUICK, attempts=4, wait=0.5))
    assert pauses == [0.5, 1.0, 7.0]


@pytest.mark.parametrize(("code", "words"), [(401, "401 Unauthorized"), (403, "403 Forbidden"), (499, "499 ")])
def test_other_refusals_are_not_tried_again(site: Any, tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(DownloadError, match=f"answers {words}"):
        fetch_file(checked(site.add("file.bin", site.status(code))), tmp_path, patience=QUICK)
    assert len(site.requests) == 1


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match=r"cannot be reached \(Connection refused\) \(3 attempts\)"):
            fetch_file(checked(url), tmp_path, patience=QUICK)


@pytest.mark.parametrize("file", [checked, trusted])
def test_a_broken_transfer_goes_on_where_it_stopped(site: Any, tmp_path: Path, file: Any) -> None:
    url = site.add("file.bin", site.serve(CONTENT, stop=70_000, ETag='"one"'), site.serve(CONTENT, ETag='"one"'))
    assert fetch_file(file(url), tmp_path, patience=QUICK).path.read_bytes() == CONTENT
    assert site.requests == [("/file.bin", None), ("/file.bin", "bytes=70000-")]


def test_a_broken_transfer_begins_again_where_the_server_has_no_ranges(site: Any, tmp_path: Path) -> None:
    broken = site.serve(CONTENT, stop=70_000, ranges=False)
    file = checked(site.add("file.bin", broken, site.serve(CONTENT, ranges=False)))
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT


def test_attempts_that_make_headway_do_not_count(site: Any, tmp_path: Path) -> None:
    steps = [site.serve(CONTENT, stop=stop, ETag='"one"') for stop in range(20_000, 200_000, 20_000)]
    file = checked(site.add("file.bin", *steps, site.serve(CONTENT, ETag='"one"')))
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT
    assert len(site.requests) == 10


def test_a_later_run_goes_on_where_an_earlier_one_stopped(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", site.serve(CONTENT, stop=70_000)))
    with pytest.raises(DownloadError, match="broke off after 70,000 of 204,800 bytes"):
        fetch_file(file, tmp_path, patience=replace(QUICK, attempts=1))
    assert not (tmp_path / "file.bin").exists()
    site.add("file.bin", CONTENT)
    fetch_file(file, tmp_path, patience=QUICK)
    assert site.requests[-1] == ("/file.bin", "bytes=70000-")
    assert left_in(tmp_path) == ["checksums.json", "file.bin"]


def test_an_interrupted_run_can_be_resumed(site: Any, tmp_path: Path) -> None:
    class Interrupt(Recorder):
        def task(self, title: str, total: float | None, unit: str = "") -> Any:
            raise KeyboardInterrupt

    first = checked(site.add("file.bin", site.serve(CONTENT, stop=70_000)))
    with pytest.raises(DownloadError):
        fetch_file(first, tmp_path, patience=replace(QUICK, attempts=1))
    with pytest.raises(KeyboardInterrupt):
        fetch_file(first, tmp_path, patience=QUICK, progress=Interrupt())
    site.add("file.bin", CONTENT)
    assert fetch_file(first, tmp_path, patience=QUICK).path.read_bytes() == CONTENT
    assert site.requests[-1] == ("/file.bin", "bytes=70000-")


def test_the_beginning_of_another_content_is_not_continued(site: Any, tmp_path: Path) -> None:
    """Without a checksum the server's word (ETag) decides; with one, a wrong result is fetched once more from 0."""
    other = bytes(reversed(CONTENT))
    for number, file in enumerate((trusted, checked)):
        folder = tmp_path / str(number)
        url = site.add("file.bin", site.serve(other, stop=70_000, ETag='"old"'))
        with pytest.raises(DownloadError):
            fetch_file(file(url), folder, patience=replace(QUICK, attempts=1))
        site.add("file.bin", site.serve(CONTENT, ETag='"new"' if file is trusted else '"old"'))
        assert fetch_file(file(url), folder, patience=QUICK).path.read_bytes() == CONTENT


def test_without_checksum_and_validator_nothing_is_continued(site: Any, tmp_path: Path) -> None:
    file = trusted(site.add("file.bin", site.serve(CONTENT, stop=70_000), CONTENT))
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT
    assert site.requests == [("/file.bin", None), ("/file.bin", None)]


def test_a_part_longer_than_the_file_is_dropped(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", site.serve(CONTENT + CONTENT, stop=len(CONTENT) + 9)))
    with pytest.raises(DownloadError):
        fetch_file(file, tmp_path, patience=replace(QUICK, attempts=1))
    site.add("file.bin", CONTENT)
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT


def test_a_wrong_checksum_names_what_was_expected_and_what_came(site: Any, tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + b"!"
    with pytest.raises(DownloadError, match=rf"expected md5:{md5(CONTENT)} but got {md5(wrong)}"):
        fetch_file(checked(site.add("file.bin", wrong)), tmp_path, patience=QUICK)
    assert left_in(tmp_path) == []
    file = RemoteFile("file.bin", (site.url + "file.bin",), md5=md5(wrong), sha256=sha256(CONTENT))
    with pytest.raises(DownloadError, match=rf"expected sha256:{sha256(CONTENT)} but got {sha256(wrong)}"):
        fetch_file(file, tmp_path, patience=QUICK)
    assert left_in(tmp_path) == []


def test_more_than_the_published_size_is_told_before_it_is_downloaded(site: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has 204,800 bytes, more than the 99 allowed"):
        fetch_file(checked(site.add("file.bin", CONTENT), max_bytes=99), tmp_path, patience=QUICK)


def test_a_web_page_is_not_taken_for_a_file(site: Any, tmp_path: Path) -> None:
    page = site.serve(b"<html>moved</html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(DownloadError, match="web page"):
        fetch_file(trusted(site.add("file.bin", page)), tmp_path, patience=QUICK)


def test_without_length_and_checksum_nothing_tells_a_broken_transfer(site: Any, tmp_path: Path) -> None:
    url = site.add("file.bin", site.serve(CONTENT, length=False))
    with pytest.raises(DownloadError, match="announces no length"):
        fetch_file(trusted(url), tmp_path, patience=QUICK)
    assert fetch_file(checked(url), tmp_path, patience=QUICK).path.read_bytes() == CONTENT


def test_an_answer_in_chunks_is_put_together_and_a_broken_one_told(site: Any, tmp_path: Path) -> None:
    url = site.add("file.bin", site.chunked(CONTENT, stop=70_000), site.chunked(CONTENT))
    assert fetch_file(trusted(url), tmp_path, patience=QUICK).path.read_bytes() == CONTENT
    assert len(site.requests) == 2


def test_an_empty_answer_is_not_taken_for_a_file(site: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"is no \.zip file"):
        fetch_file(trusted(site.add("file.zip", b""), name="file.zip"), tmp_path, patience=QUICK)


def test_an_endless_answer_is_cut_at_the_size_limit(site: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="more than the 300,000 allowed"):
        fetch_file(checked(site.add("file.bin", site.endless), max_bytes=300_000), tmp_path, patience=QUICK)
    assert left_in(tmp_path) == []


def test_an_announced_size_above_the_limit_is_refused(site: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has 204,800 bytes, more than the 1,000 allowed"):
        fetch_file(trusted(site.add("file.bin", CONTENT), max_bytes=1000), tmp_path, patience=QUICK)


def test_a_trickle_ends_at_the_time_limit(site: Any, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"too slow for the time limit of 0.5 s: .* of 204,800 bytes"):
        fetch_file(
            checked(site.add("file.bin", site.trickle(CONTENT, 0.02))), tmp_path, patience=replace(QUICK, total=0.5)
        )
    assert time.monotonic() - start < 3


def test_silence_is_noticed(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", site.silence, CONTENT))
    assert fetch_file(file, tmp_path, patience=replace(QUICK, silence=0.3)).path.read_bytes() == CONTENT


def test_the_time_limit_covers_all_attempts(site: Any, tmp_path: Path) -> None:
    patience = Patience(attempts=1000, wait=0.05, total=0.5)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"answers 503 .*time limit of 0\.5 s"):
        fetch_file(checked(site.add("file.bin", site.status(503))), tmp_path, patience=patience)
    assert time.monotonic() - start < 3


# Redirects


def test_a_redirect_is_followed(site: Any, tmp_path: Path) -> None:
    site.add("there", CONTENT)
    file = checked(site.add("file.bin", site.redirect("/there")))
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/file.bin", "gopher://x/"])
def test_a_redirect_to_anything_but_the_web_is_refused(site: Any, tmp_path: Path, location: str) -> None:
    with pytest.raises(DownloadError, match="only https addresses are followed"):
        fetch_file(checked(site.add("file.bin", site.redirect(location))), tmp_path, patience=QUICK)


def test_https_never_leads_to_http(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(self: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        asked.append(url)
        response = requests.Response()
        response.status_code, response.raw = 301, io.BytesIO()
        response.headers["Location"] = site.url + "file.bin"
        return response

    monkeypatch.setattr(requests.Session, "request", answer)
    with pytest.raises(DownloadError, match=r"leads to http://.*only https"):
        fetch_file(checked("https://example.org/file.bin"), tmp_path, patience=QUICK)
    assert asked == ["https://example.org/file.bin"]


def test_redirects_in_a_circle_end(site: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="redirects more than 5 times"):
        fetch_file(checked(site.add("file.bin", site.redirect("/file.bin"))), tmp_path, patience=QUICK)


# Proxies, certificates, addresses


@pytest.fixture
def proxied(site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The site as a proxy for everything."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, site.url)
    return site


@pytest.mark.parametrize("url", ["http://example.org/file.bin", "https://example.org/file.bin"])
def test_a_proxy_that_wants_a_password_is_named(proxied: Any, tmp_path: Path, url: str) -> None:
    proxied.answers["http://example.org/file.bin"] = [proxied.status(407)]
    proxied.answers["example.org:443"] = [proxied.status(407)]
    with pytest.raises(DownloadError, match=r"407.*HTTPS_PROXY"):
        fetch_file(checked(url), tmp_path, patience=QUICK)
    assert len(proxied.requests) == 1


def test_a_proxy_that_is_none_is_named(proxied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://a:b")
    monkeypatch.setenv("https_proxy", "nonsense://a:b")
    with pytest.raises(DownloadError, match=r"'a:b' is not a valid host or port\); check .*HTTPS_PROXY"):
        fetch_file(checked("https://example.org/file.bin"), tmp_path, patience=replace(QUICK, attempts=1))


def test_a_missing_certificate_bundle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(
        DownloadError, match=r"bundle, invalid path: /no/such/bundle\.pem\); check .*REQUESTS_CA_BUNDLE"
    ):
        fetch_file(checked("https://example.org/file.bin"), tmp_path, patience=QUICK)


@pytest.mark.parametrize("location", ["http://[::1", "http://a:port/x", "http://%zz:1/", f"http://{'a' * 70}.org/"])
def test_a_redirect_to_no_address_is_told(site: Any, tmp_path: Path, location: str) -> None:
    with pytest.raises(DownloadError, match="is no address that can be fetched"):
        fetch_file(checked(site.add("file.bin", site.redirect(location))), tmp_path, patience=QUICK)
