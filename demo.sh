#!/usr/bin/env bash
# demo.sh - the whole job at a tiny scale, from nothing: sets up, builds, generates a corpus, trains a
# small model on it, unlearns a part, tries to relearn it, and prints a table. Everything it makes is
# under build/, data/demo/ and runs/demo/.
set -euo pipefail
cd "$(dirname "$0")"

tools/setup.sh demo
# A build that is there stays as it was asked for; a new one needs no GPU for so small a model.
[ -e build/CMakeCache.txt ] || cmake -S . -B build -DMUDMAN_CUDA=OFF >/dev/null
cmake --build build -j "$(nproc)" --target mudman-mpi | { grep -vE '^\[|Built target' || true; }

rm -rf runs/demo
.venv/bin/python tools/demo_data.py data/demo >/dev/null
echo "pretraining a model of 164,288 parameters on the generated corpus"
# Two threads, whatever else the machine does, come to the same bits as one.
cores=$(nproc)
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores < 2 ? cores : 2))} build/mudman-mpi pretrain configs/demo/pretrain.yaml

# The three runs go side by side. Without masking the same rates would exceed the retain budget at
# once: that run has rates of its own, found by a search as long as MUDMAN's.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
runs=(relearning-only no-masking mudman)
declare -A arguments=(
    [relearning-only]="unlearn.loops=0"
    [no-masking]="unlearn.use_masking=false unlearn.unlearning_rate=0.0008 unlearn.retaining_rate=1.0
        unlearn.adv_lr=0.3 unlearn.fork_every_n_loops=20 unlearn.retain_momentum=0.6"
    [mudman]="")
echo "unlearning and relearning: ${runs[*]}"
pids=()
for name in "${runs[@]}"; do
    # shellcheck disable=SC2086
    build/mudman-mpi run configs/demo/mudman.yaml output.dir="runs/demo/$name" ${arguments[$name]} \
        2>"runs/demo/$name.log" &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    # 4: rejected, which the table says.
    [ $status = 0 ] || [ $status = 4 ] || { tail -n 3 runs/demo/*.log >&2; exit $status; }
done
.venv/bin/python tools/demo_table.py "${runs[@]/#/runs/demo/}"
