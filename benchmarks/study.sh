#!/usr/bin/env bash
# The reference results: the paper's experiment, the routing sweep, the ablation and the further models, at full size.
#
#     benchmarks/study.sh [OUT]        # again and again, until it says that all is done
#
# A whole study takes more than an hour, so it is made in pieces: each call stops by itself within SECONDS_A_CALL (570 by
# default, saving and packing included); every finished run stays finished, the one under way is saved, and the next call
# goes on with it. The paper's experiment comes first; PIPELINES="paper" makes nothing else. Needs 'affbench fetch mnist'
# and the same results folder in every call. Packs what is worth keeping into
# OUT/reference.tar.gz (results/study by default): the finished runs without checkpoints and predictions, as they are
# committed under results/reference, and the reports over them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/study}
limit=${SECONDS_A_CALL:-570}
pipelines=${PIPELINES:-paper routing-sweep models ablation}
python=${PYTHON:-python3}
mkdir -p "$out"
SECONDS=0
left=""
for name in $pipelines; do
    remaining=$((limit - SECONDS - 50)) # for saving and packing
    status=0
    if ((remaining > 20)); then
        timeout --signal=INT --kill-after=30 "$remaining" \
            "$python" -m affbench run "pipelines/$name.toml" "${@:2}" 2>&1 | tee -a "$out/$name.log" |
            grep --line-buffered -v '^  epoch' || status=${PIPESTATUS[0]}
    else
        status=124
    fi
    ((status == 0)) || left="$left $name"
    ((status == 0 || status == 124 || status == 130)) || echo "pipeline $name ended with status $status, see $out/$name.log"
done

"$python" - "$out" <<'PY'
import sys
import tarfile
from pathlib import Path

from affbench.base.errors import AffbenchError
from affbench.experiment.reference import add_reference
from affbench.run.folder import list_runs

results, out = Path("results"), Path(sys.argv[1])
added = []
for run in list_runs(results):
    if run.finished and run.evaluations:
        try:
            added.append(add_reference(run, out).path)
        except AffbenchError as error:
            print(f"left out: {error}")
with tarfile.open(out / "reference.tar.gz", "w:gz") as archive:
    for path in added:
        archive.add(path, f"reference/{path.name}")
    for report in sorted(path for path in (results / "reports").glob("*") if path.is_dir()):
        for part in sorted(report.rglob("*")):
            if part.is_file() and part.name != "report.html":  # the Markdown file and the figures say the same
                archive.add(part, f"reference/reports/{report.name}/{part.relative_to(report)}")
print(f"{len(added)} runs, {(out / 'reference.tar.gz').stat().st_size / 1e6:.1f} MB: {out / 'reference.tar.gz'}")
PY

if [ -n "$left" ]; then
    echo "not finished:$left; call this again"
    exit 3
fi
echo "all done"
