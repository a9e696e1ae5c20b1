#!/usr/bin/env bash
# gpu_check.sh - builds for this machine's GPU, checks the CUDA backend on it and measures its speed, in
# under 9 minutes, and writes one result file. What says most comes first: whether results are right, and
# the times of the operations, are known after about 4 minutes. Needs the CUDA toolkit, cmake, a C++ compiler and a GPU;
# python3 with numpy and h5py for the whole job, with torch and transformers for the comparison.
#   tools/gpu_check.sh [BUNDLE] [RESULT_FILE]
# BUNDLE: tools/bundle.sh's archive, where the machine lacks the libraries; "" or "-": it has them.
# RESULT_FILE: default build-gpu/gpu_check.txt. Every step has its share of the time; what fails or is
# too slow is recorded and the rest goes on. Exit status 0 only if every step of correctness passed.
# GPU_CHECK_SECONDS: other time than 525 s. tests/python/test_gpu_check.py rehearses it without a GPU.
set -uo pipefail
bundle=${1:--}
[ "$bundle" = - ] || [ -z "$bundle" ] || bundle=$(realpath "$bundle")
result=$(realpath -m "${2:-$(dirname "$0")/../build-gpu/gpu_check.txt}")
cd "$(dirname "$0")/.." || exit 1

SECONDS=0
readonly budget=${GPU_CHECK_SECONDS:-525} # the last step stops in time for the rest of 9 minutes
build=$PWD/build-gpu
logs=$build/log
jobs=$(nproc)
failed=0
mkdir -p "$logs" "$(dirname "$result")"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export PYTHONDONTWRITEBYTECODE=1

say() {
    echo "$*" | tee -a "$result"
}
# step KIND NAME SECONDS COMMAND...: KIND check (must pass), figures (shown whole). The command, also a
# function of this file, runs in a process group of its own that ends with its time.
step() {
    local kind=$1 name=$2 most=$3 left=$((budget - SECONDS)) start=$SECONDS status
    shift 3
    [ "$most" -le "$left" ] || most=$left
    if [ "$most" -le 0 ]; then
        status=124
        echo "no time was left" >"$logs/$name"
    else
        timeout -k 5 "$most" bash -c '"$@"' - "$@" >"$logs/$name" 2>&1
        status=$?
    fi
    case $status in
    0) say "passed   $name ($((SECONDS - start)) s)" ;;
    124 | 137) say "TOO SLOW $name ($((SECONDS - start)) s)" ;;
    *) say "FAILED   $name (status $status, $((SECONDS - start)) s)" ;;
    esac
    if [ "$kind" = figures ]; then
        sed 's/^/    /' "$logs/$name" | tee -a "$result"
    elif [ $status != 0 ]; then
        tail -n 30 "$logs/$name" | sed 's/^/    /' | tee -a "$result"
    fi
    [ "$kind" = figures ] || [ $status = 0 ] || failed=1
    return $status
}

# -- the steps ---------------------------------------------------------------------------------------
build_all() {
    local options=(-DMUDMAN_CUDA=ON -DMUDMAN_WERROR=OFF "-DCMAKE_CUDA_ARCHITECTURES=$architecture"
        -DCMAKE_CUDA_FLAGS=-lineinfo)
    [ -z "${MUDMAN_BUNDLE:-}" ] || options=(-C "$MUDMAN_BUNDLE/bundle.cmake" "${options[@]}")
    cmake -G 'Unix Makefiles' "${options[@]}" -S . -B "$build" &&
        cmake --build "$build" -j "$jobs" --target gpu_programs -- --keep-going
}
# Skipped is not passed: there is a GPU.
gpu_tests() {
    ctest --test-dir "$build" -L gpu --output-on-failure --no-tests=error | tee "$logs/ctest.out"
    local status=${PIPESTATUS[0]}
    ! grep -E '\*\*\*(Skipped|Not Run)' "$logs/ctest.out" && return "$status"
}
# On every operation test, a minute each, some side by side. Of cuBLASLt's own kernels racecheck says
# what is not so.
sanitize() { # TOOL
    local programs=("$build"/tests/test_ops*_cuda)
    printf '%s\n' "${programs[@]}" | xargs -P 6 -I{} timeout -k 5 60 \
        compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 5 \
        --kernel-name-exclude kns=nvjet,kns=gemm,kns=gemv,kns=cutlass,kns=cublas {}
}
# The whole job of the demo on the GPU: twice, which must end in the same bits, and on two ranks that
# share the GPU.
demo_job() { # NAME TRANSPORT LAUNCHER...
    local name=$1 transport=$2
    shift 2
    rm -rf "$build/demo/$name"
    "$@" "$build/mudman-mpi" run configs/demo/mudman.yaml device=cuda transport="$transport" \
        output.dir="$build/demo/$name" model.path="$build/demo/pretrained/model" \
        unlearn.retain_loss_budget=1000
}
demo_jobs() {
    rm -rf "$build/demo/pretrained"
    python3 tools/demo_data.py data/demo >/dev/null &&
        "$build/mudman-mpi" pretrain configs/demo/pretrain.yaml device=cuda \
            output.dir="$build/demo/pretrained" &&
        demo_job first auto && demo_job second auto &&
        demo_job two-ranks staged mpirun -n 2 --bind-to none env OMP_NUM_THREADS=1 || return
    [ "$(grep -c '"phase":"unlearn"' "$build/demo/two-ranks/metrics.jsonl")" = 60 ] || return
    local file
    for file in "$build"/demo/first/model/*.safetensors; do
        cmp "$file" "$build/demo/second/model/$(basename "$file")" || return
    done
    cmp <(grep -v '"phase":"result"' "$build/demo/first/metrics.jsonl") \
        <(grep -v '"phase":"result"' "$build/demo/second/metrics.jsonl")
}
# Two GPUs: what their ranks exchange, and the whole job.
over_nccl() {
    nvidia-smi topo -m
    mpirun -n 2 --bind-to none "$build/tests/test_comm_rows_cuda" nccl float32 &&
        mpirun -n 2 --bind-to none "$build/tests/test_comm_rows_cuda" nccl bfloat16 &&
        demo_job nccl nccl mpirun -n 2 --bind-to none env OMP_NUM_THREADS=1
}
memory() { # what the program counts, beside what the driver says
    local used before peak=0
    before=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0)
    "$build/tests/bench_loop" --shape llama-1b --device cuda --dtype bfloat16 --repeats 40 &
    while kill -0 $! 2>/dev/null; do
        used=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0)
        peak=$((used > peak ? used : peak))
        sleep 0.1
    done
    wait $! && echo "by the driver, with the CUDA context: $((peak - before)) MiB"
}
export -f build_all gpu_tests sanitize demo_job demo_jobs over_nccl memory

# -- this machine ------------------------------------------------------------------------------------
: >"$result"
if [ -n "$bundle" ] && [ "$bundle" != - ]; then
    rm -rf "$build/bundle"
    tar -C "$build" -xf "$bundle" || exit 1
    . "$build/bundle/env.sh"
fi
# NCCL comes with the toolkit or with PyTorch's packages; those have no name for the linker.
nccl=$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null)
if [ -z "${NCCL_HOME:-}" ] && [ -n "$nccl" ]; then
    mkdir -p "$build/nccl/lib"
    ln -sfn "$nccl/include" "$build/nccl/include"
    ln -sf "$nccl/lib/libnccl.so.2" "$build/nccl/lib/libnccl.so.2"
    ln -sf libnccl.so.2 "$build/nccl/lib/libnccl.so"
    export NCCL_HOME=$build/nccl
fi
if ! command -v nvcc >/dev/null; then
    PATH=$PATH:/usr/local/cuda/bin
fi
# The tests' Python, where tools/setup.sh has not made one: this machine's.
if [ ! -e .venv/bin/python ]; then
    mkdir -p .venv/bin
    printf '#!/bin/sh\nexec python3 "$@"\n' >.venv/bin/python
    chmod +x .venv/bin/python
fi
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 2>/dev/null | tr -d .)
export build logs jobs architecture
say "$(date -u '+%Y-%m-%d %H:%M UTC')"
say "GPU      $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -n 1)"
say "toolkit  $(nvcc --version 2>/dev/null | grep -o 'release.*')"
say "commit   $(git rev-parse HEAD 2>/dev/null || echo 'no repository'), sources $(find CMakeLists.txt \
    src io comm kernels tests -type f -not -name '*.pyc' | LC_ALL=C sort | xargs cat | sha256sum | head -c 16)"
if ! [[ $architecture =~ ^[0-9]+$ ]]; then
    say "FAILED   no GPU: nvidia-smi answers nothing"
    exit 1
fi

# -- what says most first ----------------------------------------------------------------------------
bench_gpu() { # SHAPE
    step figures "bench_gpu-$1" 30 "$build/tests/bench_gpu" --shape "$1"
}
step check build 240 build_all
if [ -x "$build/mudman-mpi" ]; then
    step check ctest-gpu 200 gpu_tests
    bench_gpu llama-1b
    step check demo 60 demo_jobs
    if [ "$(nvidia-smi --list-gpus | wc -l)" -lt 2 ]; then
        say "skipped  nccl: one GPU"
    elif ! [ -x "$build/tests/test_comm_rows_cuda" ]; then
        say "skipped  nccl: not in this build, see NCCL_HOME"
    else
        step check nccl 60 over_nccl
    fi
    step figures memory 30 memory
    bench_gpu smollm-135m
    bench_gpu pythia-14m
    if command -v compute-sanitizer >/dev/null; then
        step check memcheck 150 sanitize memcheck
        step check racecheck 150 sanitize racecheck
    else
        say "skipped  memcheck, racecheck: no compute-sanitizer"
    fi
    left=$((budget - SECONDS))
    step figures bench_peer "$left" python3 tests/bench/bench_peer.py --device cuda \
        --binary "$build/tests/bench_loop" --repeats 20 --seconds $((left - 5))
fi
say "$([ $failed = 0 ] && echo "all checks passed" || echo "CHECKS FAILED"), $SECONDS s"
exit $failed
