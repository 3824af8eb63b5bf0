#!/usr/bin/env bash
# Everything affbench says of speed on a CUDA device, in one command of at most ten minutes:
#
#     benchmarks/gpu.sh [OUT]
#
# Correctness first (the models' tests on this machine, and what the device computes against float64 and the CPU), then
# `affbench bench` at several batch sizes, then the evaluation of a whole synthetic affNIST. Writes JSON and logs into
# OUT (results/gpu by default) and prints a short table last. Uses MNIST where it has been fetched, else the sample.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/gpu}
mkdir -p "$out"
python=${PYTHON:-python3}
"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA device here")'

timeout 120 "$python" -m pytest -q tests/models >"$out/tests.log" 2>&1 || echo "tests failed, see $out/tests.log"

timeout 120 "$python" benchmarks/correctness.py --device cuda >"$out/correctness.log" 2>"$out/correctness.err" ||
    echo "the device does not compute what it should, see $out/correctness.log and .err"
grep -E "Triton|WRONG" "$out/correctness.log" || true

for batch in 32 128 256 512 1024; do
    timeout 90 "$python" -m affbench bench --device cuda --batch-size "$batch" --repeats 20 --json \
        >"$out/bench-$batch.json" 2>"$out/bench-$batch.log" || echo "bench at batch $batch failed, see $out/bench-$batch.log"
done

set_suffix=-sample copies=320
if "$python" -m affbench status --json | "$python" -c '
import json, sys
sys.exit(not any(raw["family"] == "mnist" and raw["complete"] for raw in json.load(sys.stdin)["raw"]))'; then
    set_suffix="" copies=32
fi
"$python" -m affbench train --device cuda --train-set "mnist-translated$set_suffix" --epochs 3 --batch-size 512 --json \
    >"$out/train.json" 2>"$out/train.log"
"$python" -m affbench eval --device cuda --set "affnist-synthetic$set_suffix" --copies "$copies" --json \
    >"$out/eval.json" 2>"$out/eval.log"

"$python" - "$out" <<'PY'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
print(f"{'batch':>6} {'train img/s':>12} {'eval img/s':>12} {'step/floor':>11} {'textbook/step':>14} {'r10/r1':>7} {'GiB':>6}")
for path in sorted(out.glob("bench-*.json"), key=lambda path: int(path.stem.split("-")[1])):
    try:
        speed = json.loads(path.read_text())
    except json.JSONDecodeError:
        continue
    ratios = [speed[name]["median"] for name in ("step_over_floor", "textbook_over_step", "routing_10_over_1")]
    memory = (speed["peak_memory_bytes"] or 0) / 2**30
    rates = f"{speed['train_images_per_second']:12,.0f} {speed['eval_images_per_second']:12,.0f}"
    print(f"{speed['batch_size']:6} {rates} {ratios[0]:11.2f} {ratios[1]:14.2f} {ratios[2]:7.2f} {memory:6.2f}")
record = json.loads((out / "eval.json").read_text())
print(f"evaluation of {record['n']:,} images on the device: {record['seconds']:.2f} s")
print(*(line.strip() for line in (out / "train.log").read_text().splitlines() if "images/s" in line), sep="\n")
PY
