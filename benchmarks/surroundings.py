"""Run affbench in every kind of bad surroundings, and show how each command ends.

    python benchmarks/surroundings.py

Folders, networks, displays and streams as users have them: each case ends with status 0, or with one sentence that
says what to do. A traceback, "This is a bug" or a wrong ending counts against affbench, and makes this script fail.
What a system cannot offer (file systems of one's own, devices that are full) is listed as not tried.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
SAMPLE, AFFINE = "mnist-translated-sample", "affnist-synthetic-sample"
TRAIN = (
    *(
        "train",
        "--model",
        "capsnet",
        "-o",
        "filters=4",
        "-o",
        "primary_types=2",
        "-o",
        "decoder=8,8",
        "--device",
        "cpu",
    ),
    *("--train-set", SAMPLE, "--limit", "64", "--batch-size", "32", "--precision", "float32"),
)
FETCH = ("fetch", "affnist", "--quiet", "--data-dir", "new")
EVAL = ("eval", "--set", SAMPLE, "--limit", "100", "--device", "cpu")
UNTESTED = (*EVAL, "--limit", "101")
OFFICIAL = ("eval", "--set", "affnist", "--limit", "100", "--device", "cpu")
LONG = "x" * 300
IN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")


@dataclass
class Case:
    """A command and what surrounds it, run in a folder of its own that holds a trained run."""

    name: str
    arguments: tuple[str, ...]
    ends: tuple[int, ...] = (0,)  # the statuses that are right
    says: str = ""  # what standard error must match
    environment: dict[str, str] = field(default_factory=dict)
    before: Callable[[Path], None] = lambda folder: None
    start: str = '"$@"'  # how the command is started
    patch: str = ""  # Python that runs before affbench, in place of another operating system
    site: str = ""  # how the local server answers; its address is {site} in arguments and environment


@dataclass(frozen=True)
class Ending:
    """How a case ended."""

    case: Case
    status: int | None  # None: not tried
    sentence: str
    good: bool


def link(name: str) -> Callable[[Path], None]:
    """Put a link that leads nowhere in the place of a folder."""

    def make(folder: Path) -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).symlink_to(folder / "unmounted")

    return make


def mirror(name: str, content: bytes) -> Callable[[Path], None]:
    """A mirror's folder with one file."""

    def make(folder: Path) -> None:
        (folder / "mirror").mkdir()
        (folder / "mirror" / name).write_bytes(content)

    return make


def matplotlibrc(text: str) -> Callable[[Path], None]:
    """A configuration of matplotlib's in the current folder."""
    return lambda folder: (folder / "matplotlibrc").write_text(text) and None


PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "{site}") | {
    "NO_PROXY": "",
    "no_proxy": "",
}
NO_LOCKS = """
import errno, fcntl
def flock(*_): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""
NO_LINKS = """
import os
def symlink(*_, **__): raise OSError(1314, "A required privilege is not held by the client")
os.symlink = symlink
"""
HELD = (
    'exec 3>"$PWD/held"; python -c "import h5py,sys,time; f = h5py.File(sys.argv[1], \'r+\'); print(flush=True); '
    'time.sleep(60)" data/sets/affnist-test.h5 >&3 & while [ ! -s held ]; do sleep 0.1; done; '
    '"$@"; status=$?; kill %1; exit $status'
)
TOUCHED = "python -c \"import h5py; h5py.File('data/sets/affnist-test.h5', 'r+').attrs['seen'] = 1\"; \"$@\""
SMALL_TEMPORARY = 'mkdir -p tmp; mount -t tmpfs -o size=64k small tmp; export TMPDIR="$PWD/tmp"; "$@"'
HANGUP = (
    '"$@" & job=$!; while ! ls results/runs/*seed9*/resume.pt >/dev/null 2>&1; do sleep 0.1; done; '
    "kill -{} $job; wait $job"
)

CASES = (
    # Folders
    Case("home in the variable", EVAL, environment={"HOME": "{}", "AFFBENCH_DATA_DIR": "~/data"}),
    Case("home in the option", (*EVAL, "--data-dir=~/data"), environment={"HOME": "{}"}),
    Case("home of nobody", (*UNTESTED, "--data-dir=~nobody-of-that-name/data"), (1, 2), "nobody-of-that-name"),
    Case("data: a link to nowhere", UNTESTED, (1,), "link to .*unmounted", before=link("data")),
    Case(
        "fetch: data a link to nowhere",
        (*FETCH, "--data-dir", "data"),
        (1,),
        "link to .*unmounted",
        before=link("data"),
    ),
    Case("results: a link to nowhere", (*TRAIN, "--epochs", "1"), (1,), "link to .*unmounted", before=link("results")),
    Case("data: a file", (*UNTESTED, "--data-dir", "file"), (1,), before=lambda f: (f / "file").touch()),
    Case("results: a file", (*TRAIN, "--results-dir", "file"), (1, 2), before=lambda f: (f / "file").touch()),
    Case("data: a name of 300 letters", (*UNTESTED, "--data-dir", LONG), (1,), "longer"),
    Case("results: a name of 300 letters", (*TRAIN, "--results-dir", LONG), (1,), "longer"),
    Case("status: names of 300 letters", ("status", "--data-dir", LONG, "--results-dir", LONG), (0, 1)),
    Case("doctor: names of 300 letters", ("doctor", "--offline", "--data-dir", LONG), (0, 1)),
    Case("export: a name of 300 letters", ("export", "--set", AFFINE, "--copies", "1", f"{LONG}.mat"), (1,), "longer"),
    Case("mirror: a name of 300 letters", (*FETCH, "--mirror", LONG), (1, 2), LONG[:9]),
    Case("run: a name of 300 letters", ("run", LONG), (1, 2), LONG[:9]),
    Case("eval --run: a name of 300 letters", (*EVAL, "--run", LONG), (1, 2), LONG[:9]),
    Case("leaderboard --add: a name of 300 letters", ("leaderboard", "--add", LONG), (1, 2), LONG[:9]),
    Case(
        "current folder gone", EVAL, (1, 2), start='mkdir gone; cd gone; rmdir ../gone; unset AFFBENCH_DATA_DIR; "$@"'
    ),
    Case("no links to be had", (*FETCH, "--mirror", "{home}/batches"), patch=NO_LINKS),
    Case("full temporary folder: zip", (*FETCH, "--mirror", "{home}/zip"), (1,), "TMPDIR", start=SMALL_TEMPORARY),
    Case(
        "full temporary folder: export",
        ("export", "--set", AFFINE, "--copies", "1", "out.zip"),
        (0, 1),
        "",
        start=SMALL_TEMPORARY,
    ),
    Case("no locks: test again", EVAL, patch=NO_LOCKS),
    Case("no locks: status", ("status",), patch=NO_LOCKS),
    Case("no locks: train", (*TRAIN, "--epochs", "1", "--seed", "8"), (1,), "no locks", patch=NO_LOCKS),
    Case("official set open for writing", OFFICIAL, (0, 1), start=HELD),
    Case("official set written to", OFFICIAL, (1,), "affbench fetch affnist", start=TOUCHED),
    # Networks
    Case("proxy: wants a password", FETCH, (1,), "proxy", PROXY, site="407"),
    Case("doctor: proxy wants a password", ("doctor",), environment=PROXY, site="407"),
    Case("proxy: not there", FETCH, (1,), "proxy", {**PROXY, "HTTPS_PROXY": "http://127.0.0.1:1"}),
    Case("doctor: no proxy at all", ("doctor",), environment={**PROXY, "https_proxy": "nonsense://a:b"}),
    Case("certificates: no bundle", FETCH, (1,), "REQUESTS_CA_BUNDLE", {"REQUESTS_CA_BUNDLE": "/no/such/bundle.pem"}),
    Case("doctor: no bundle", ("doctor",), environment={"REQUESTS_CA_BUNDLE": "/no/such/bundle.pem"}),
    *(
        Case(f"mirror: {url}", (*FETCH, "--mirror", url), (2,), "--mirror")
        for url in ("http://[::1", "http://a:port", "https://", "http://.a", "ftp://a/b", "file:///no/such/folder")
    ),
    Case("mirror: redirects to no address", (*FETCH, "--mirror", "{site}"), (1,), "no address", site="302"),
    Case("mirror: 403 for everything", (*FETCH, "--mirror", "{site}"), (1,), "403 Forbidden", site="403"),
    Case("mirror: error pages", (*FETCH, "--mirror", "{site}"), (1,), "web page", site="200 text/html"),
    Case(
        "mirror: error pages called files",
        (*FETCH, "--mirror", "{site}"),
        (1,),
        "no .zip file",
        site="200 application/zip",
    ),
    Case(
        "mirror: a pointer of Git LFS",
        (*FETCH, "--mirror", "mirror"),
        (1,),
        "Git LFS",
        before=mirror("test.mat.zip", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ),
    # Displays
    *(
        Case(f"MPLBACKEND={backend}", ("report",), environment={"MPLBACKEND": backend})
        for backend in ("module://matplotlib_inline.backend_inline", "module://no_such_module", "nonsense", "TkAgg")
    ),
    Case("matplotlibrc: usetex", ("report",), before=matplotlibrc("text.usetex: true\n")),
    Case("matplotlibrc: usetex, show", ("show", "--set", SAMPLE), before=matplotlibrc("text.usetex: true\n")),
    Case("matplotlibrc: a backend", ("report",), before=matplotlibrc("backend: module://no_such_module\n")),
    Case("matplotlibrc: no configuration", ("report",), before=matplotlibrc("nonsense\n\x00")),
    Case("no home to write to", ("report",), environment={"HOME": "/proc/1", "XDG_CACHE_HOME": "/proc/1"}),
    *(
        Case(f"{name}={value}", ("status",), environment={name: value})
        for name, value in (
            ("COLUMNS", "1"),
            ("COLUMNS", "many"),
            ("TERM", "dumb"),
            ("TERM", "nonsense"),
            ("LC_ALL", "xx_XX"),
        )
    ),
    # Streams
    *(
        Case(
            f"ASCII: {' '.join(command[:1])}{flag}",
            (*command, *flag.split()),
            environment={"PYTHONIOENCODING": "ascii"},
        )
        for command in (("status",), EVAL, ("report",), ("doctor", "--offline"))
        for flag in ("", " --json")
    ),
    Case("ASCII: help", ("--help",), environment={"PYTHONIOENCODING": "ascii"}),
    Case("ASCII: a sentence", ("eval", "--set", "ziffern-ä"), (2,), environment={"PYTHONIOENCODING": "ascii"}),
    Case("output: full", ("status", "--json"), (1,), "standard output", start='"$@" >/dev/full'),
    Case("output: full, help", ("--help",), (1,), "standard output", start='"$@" >/dev/full'),
    Case("output: closed", ("status", "--json"), (0, 1), start='"$@" >&-'),
    Case("output: closed, no document", ("status",), start='"$@" >&-'),
    Case("output: closed, help", ("--help",), (0, 1), start='"$@" >&-'),
    Case("errors: closed", EVAL, start='"$@" 2>&-'),
    Case("errors: closed, and one to tell", ("eval", "--set", "nonsense"), (2,), start='"$@" 2>&-'),
    Case("errors: full", EVAL, (0, 1), start='"$@" 2>/dev/full'),
    Case("errors: a closed pipe", EVAL, start='set -o pipefail; "$@" 2>&1 >/dev/null | true'),
    Case("input: closed", EVAL, start='"$@" <&-'),
    Case("all closed", EVAL, start='"$@" <&- >&- 2>&-'),
    Case("document into a closed pipe", ("status", "--json"), start='set -o pipefail; "$@" | true'),
    Case("help into a closed pipe", ("--help",), (0, 1), start='set -o pipefail; "$@" | true'),
    Case("document into a slow closed pipe", ("status", "--json"), start='set -o pipefail; "$@" | head -c 1'),
    *(
        Case(
            f"signal {name}",
            (*TRAIN, "--epochs", "5000", "--seed", "9", "--checkpoint-minutes", "0"),
            (130,),
            "--resume|same command",
            start=HANGUP.replace("{}", name),
        )
        for name in ("HUP", "TERM", "INT")
    ),
    Case(
        "signal HUP, nohup",
        (*TRAIN, "--epochs", "40", "--seed", "9", "--checkpoint-minutes", "0"),
        start="nohup " + HANGUP.replace("{}", "HUP"),
    ),
)


class Server(BaseHTTPRequestHandler):
    """A server or proxy that answers everything in the same way: ``STATUS TYPE``."""

    def answer(self) -> None:
        status, _, kind = self.server.manner.partition(" ")  # type: ignore[attr-defined]
        page = b"<html>sorry</html>"
        self.send_response(int(status))
        for name, value in (("Content-Type", kind), ("Content-Length", len(page)), ("Location", "http://[::1")):
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_GET = do_HEAD = do_CONNECT = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(manner: str) -> Iterator[str]:
    """The address of a server that answers so."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.manner = manner  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def affbench(folder: Path, *arguments: str) -> None:
    """Run a command that must succeed."""
    subprocess.run([sys.executable, "-m", "affbench", *arguments, "--quiet"], cwd=folder, check=True)


def prepare(home: Path) -> None:
    """A trained and tested run, and the official files in two forms, of as few images as can be."""
    affbench(home, *TRAIN, "--epochs", "1")
    affbench(home, *EVAL)
    for name in ("zip", "batches/test_batches"):
        (home / name).mkdir(parents=True)
    affbench(home, "export", "--set", AFFINE, "--copies", "1", "zip/test.mat.zip")
    affbench(home, "export", "--set", AFFINE, "--copies", "1", "1.mat")
    for number in range(1, 33):
        os.link(home / "1.mat", home / "batches" / "test_batches" / f"{number}.mat")
    affbench(home, "fetch", "affnist", "--offline", "--mirror", "zip")


def run(case: Case, home: Path) -> Ending:
    """Run one case."""
    with tempfile.TemporaryDirectory(dir=home.parent) as name, served(case.site or "404") as site:
        folder = Path(name)
        for part in ("data", "results"):
            shutil.copytree(home / part, folder / part, symlinks=True)
        case.before(folder)
        (folder / "sitecustomize.py").write_text(case.patch)
        environment = os.environ | {"NO_PROXY": "127.0.0.1", "PYTHONPATH": f"{folder}:{ROOT}"}
        environment |= {
            key: value.replace("{site}", site).replace("{}", name) for key, value in case.environment.items()
        }
        arguments = [each.replace("{site}", site).replace("{home}", str(home)) for each in case.arguments]
        shell = IN_NAMESPACE if "mount " in case.start else ("bash", "-c")
        with subprocess.Popen(
            [*shell, case.start, "sh", sys.executable, "-m", "affbench", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own, so that all of it can be ended
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup may have started this script
        ) as process:
            try:
                output, told = (text.strip() for text in process.communicate(timeout=120))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return Ending(case, 124, "did not end within two minutes", good=False)
        if "unshare" in told or "mount:" in told:
            return Ending(case, None, told.splitlines()[-1], good=True)
        broken = re.search("Traceback|This is a bug|Exception ignored|Fatal Python", told + output)
        good = not broken and process.returncode in case.ends and bool(re.search(case.says, told))
        if (folder / "~").exists():
            good = False
        sentences = [line for line in told.splitlines() if line.startswith("affbench: ")] or told.splitlines()[-1:]
        return Ending(case, process.returncode, " ".join(sentences) if good else told or output[-300:], good)


def main() -> None:
    """Run the cases, print a table, and fail if one ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name matches this")
    only = parser.parse_args().only
    endings = []
    with tempfile.TemporaryDirectory(prefix="affbench-surroundings-") as name:
        home = Path(name) / "home"
        home.mkdir()
        prepare(home)
        for case in CASES:
            if re.search(only, case.name):
                ending = run(case, home)
                endings.append(ending)
                status = "–" if ending.status is None else str(ending.status)
                sentence = ending.sentence if not ending.good else textwrap.shorten(ending.sentence, 150)
                print(f"{'good' if ending.good else 'BAD '}  {status:>4}  {case.name[:40]:40}  {sentence}", flush=True)
    bad = sum(not ending.good for ending in endings)
    missed = sum(ending.status is None for ending in endings)
    print(f"{len(endings)} cases: {len(endings) - bad - missed} end as they should, {bad} do not, {missed} not tried")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
