"""The hash over a model's code: what changes it, and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import affbench
from affbench.models.registry import model_code
from affbench.models.source import code_hash

CODE = (
    'import math\nfrom helper import width\n\n\ndef make(canvas):\n    """Build."""\n    return width(canvas)  # it\n'
)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a module, its helper, and a package with a relative import."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("def width(canvas): return 2 * canvas\n")
    (tmp_path / "unused.py").write_text("x = 1\n")
    (tmp_path / "zoo" / "parts").mkdir(parents=True)
    (tmp_path / "zoo" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "model.py").write_text("from .parts import layer\n\n\ndef make(): return layer.size\n")
    (tmp_path / "zoo" / "parts" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "parts" / "layer.py").write_text("size = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content", "changes"),
    [
        ("mine.py", CODE.replace("# it", "# this").replace("Build.", "Make."), False),
        ("mine.py", CODE.replace("    return width(canvas)", "    return width(\n        canvas\n    )"), False),
        ("mine.py", CODE.replace("width(canvas)", "width(canvas + 1)"), True),
        ("helper.py", "def width(canvas): return 3 * canvas\n", True),
        ("unused.py", "x = 2\n", False),
    ],
)
def test_what_is_computed_makes_the_hash(outside: Path, file: str, content: str, changes: bool) -> None:
    before = code_hash("mine")
    (outside / file).write_text(content)
    assert (code_hash("mine") != before) == changes


def test_relative_imports_are_followed(outside: Path) -> None:
    before = code_hash("zoo.model")
    (outside / "zoo" / "parts" / "layer.py").write_text("size = 4\n")
    assert code_hash("zoo.model") != before
    assert "zoo" not in sys.modules  # looked at, not run


def test_there_is_no_hash_without_source() -> None:
    assert code_hash("builtins") is None
    assert code_hash("nowhere.at.all") is None


def test_editing_a_layer_of_a_built_in_model_is_seen(tmp_path: Path) -> None:
    package = Path(affbench.__file__).parent
    shutil.copytree(package, tmp_path / "affbench", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine.py").write_text("from affbench.models import Conv2d\n")
    code = "from affbench.models.source import code_hash\n"
    code += "for name in ('affbench.models.capsnet', 'affbench.models.cnn', 'mine'):\n  print(code_hash(name))"

    def hashes() -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.split()

    before = hashes()
    assert before[0] == model_code("capsnet")
    routing = tmp_path / "affbench" / "models" / "routing.py"
    routing.write_text(routing.read_text().replace("std=", "std=2 * "))
    after = hashes()
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    convolution = tmp_path / "affbench" / "models" / "kernels" / "convolution.py"
    convolution.write_text(
        convolution.read_text().replace("np.kron(outputs, outputs)", "2 * np.kron(outputs, outputs)")
    )
    assert not set(hashes()) & set(after)
