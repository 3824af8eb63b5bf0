#!/usr/bin/env bash
# Everything affbench says of speed on a CUDA device, in one command of at most ten minutes:
#
#     benchmarks/gpu.sh [OUT]
#
# Correctness first (what the device computes against float64 and the CPU, and whether the step is replayed from a
# graph), then `affbench bench` at several batch sizes, three epochs of training, the evaluation of a whole synthetic
# affNIST, the block sizes of the routing kernels, and the models' tests. Each part has a time of its own, and none runs
# past SECONDS_A_CALL (570): what fails, takes too long or is left out is said, and the others are in the table all the
# same. Writes JSON and logs into OUT (results/gpu by default). Uses MNIST where it has been fetched, else the sample.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/gpu}
limit=${SECONDS_A_CALL:-570}
mkdir -p "$out"
python=${PYTHON:-python3}
"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA device here")'
rm -f "$out"/bench-*.json "$out"/train.json "$out"/eval.json # of an earlier call
SECONDS=0

# part MOST FILE ARGUMENTS...: runs Python for at most MOST seconds, its output into OUT/FILE, messages into a log.
part() {
    local most=$1 file=$2 status=0 left=$((limit - SECONDS - 20))
    shift 2
    if ((left < 10)); then
        echo "$file was left out: no time is left of $limit seconds"
        return
    fi
    timeout --kill-after=10 "$((most < left ? most : left))" "$python" "$@" >"$out/$file" 2>"$out/${file%.*}.log" || status=$?
    if ((status)); then
        ((status == 124 || status == 137)) && status="$status, out of time"
        echo "$file ended with status $status, see ${file%.*}.log"
    fi
}

part 120 correctness.txt benchmarks/correctness.py --device cuda
grep -E "Triton|graph|WRONG" "$out/correctness.txt" || true
for batch in 128 32 512 256 1024; do
    part 60 "bench-$batch.json" -m affbench bench --device cuda --batch-size "$batch" --repeats 20 --json
done

set_suffix=-sample copies=320
if "$python" -m affbench status --json | "$python" -c '
import json, sys
sys.exit(not any(raw["family"] == "mnist" and raw["complete"] for raw in json.load(sys.stdin)["raw"]))'; then
    set_suffix="" copies=32
fi
part 120 train.json -m affbench train --device cuda --train-set "mnist-translated$set_suffix" --epochs 3 --batch-size 512 --json
part 120 eval.json -m affbench eval --device cuda --set "affnist-synthetic$set_suffix" --copies "$copies" --json
part 90 blocks.txt benchmarks/blocks.py --sizes 8x16
part 120 tests.txt -m pytest -q tests/models

"$python" - "$out" <<'PY'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


print(f"{'batch':>6} {'train img/s':>12} {'eval img/s':>12} {'step/floor':>11} {'textbook/step':>14} {'r10/r1':>7} {'GiB':>6}")
for path in sorted(out.glob("bench-*.json"), key=lambda path: int(path.stem.split("-")[1])):
    if (speed := read(path)) is None:
        continue
    named = (speed[name] for name in ("step_over_floor", "textbook_over_step", "routing_10_over_1"))
    ratios = [f"{spread['median']:.2f}" if spread else "-" for spread in named]
    memory = (speed["peak_memory_bytes"] or 0) / 2**30
    rates = f"{speed['train_images_per_second']:12,.0f} {speed['eval_images_per_second']:12,.0f}"
    print(f"{speed['batch_size']:6} {rates} {ratios[0]:>11} {ratios[1]:>14} {ratios[2]:>7} {memory:6.2f}")
if record := read(out / "eval.json"):
    print(f"evaluation of {record['n']:,} images on the device: {record['seconds']:.2f} s")
if (out / "train.log").is_file():
    print(*(line.strip() for line in (out / "train.log").read_text().splitlines() if "images/s" in line), sep="\n")
PY
cat "$out/blocks.txt" 2>/dev/null || true
