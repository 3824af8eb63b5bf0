"""Render the official affNIST images that lie in a folder again, and compare them pixel by pixel.

usage: python .ci/official_images.py FOLDER MNIST_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from affbench.data.dataset import TRANSFORM_COLUMNS
from affbench.data.idx import read_pair
from affbench.data.synthesis import render

folder, mnist = map(Path, sys.argv[1:])
digits, _ = read_pair(mnist / "train-images-idx3-ubyte.gz", mnist / "train-labels-idx1-ubyte.gz")
ink = equal = images = worst = 0
for path in sorted(folder.glob("official_*.npz")):
    cases = json.loads(path.with_suffix(".json").read_text())["cases"]
    table = np.array([[case["rotation_ccw"], *(case[name] for name in TRANSFORM_COLUMNS[1:])] for case in cases])
    stored = np.load(path)
    rendered = render(digits[[case["mnist_train_index"] for case in cases]], table)
    if "positions" in stored:
        rendered = rendered[:, stored["positions"]][:, :, stored["positions"]]
    inked = (rendered > 0) | (stored["levels"] > 0)
    off = np.abs(rendered.astype(int) - stored["levels"])
    images, ink, equal = images + len(cases), ink + int(inked.sum()), equal + int((inked & (off == 0)).sum())
    worst = max(worst, int(off.max()))
print(f"{images} official images: {equal / ink:.2%} of {ink:,} ink pixels equal, none off by more than {worst}")  # noqa: T201
sys.exit(equal / ink < 0.9 or worst > 2)
