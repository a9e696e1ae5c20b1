#!/usr/bin/env bash
# test.sh - sets up, builds with gcc and clang as errors on warnings, and runs all tests: first with
# AddressSanitizer and UndefinedBehaviorSanitizer, then the release build, which compiles the CUDA
# backend too where nvcc is, for one architecture. Ends with ctest's summary.
#   ./test.sh          everything
#   ./test.sh quick    the release build only
set -euo pipefail
cd "$(dirname "$0")"

tools/setup.sh test
jobs=$(nproc)
build() { # FOLDER CMAKE-ARGUMENTS...
    local folder=$1
    shift
    # Of cmake's words those that say whether the CUDA backend is compiled, and why not.
    cmake -S . -B "$folder" -DMUDMAN_WERROR=ON -DMUDMAN_CUDA=OFF "$@" |
        { grep -E '^-- (CUDA |NCCL|without)' || true; }
    cmake --build "$folder" -j "$jobs" | { grep -vE '^\[|Building|Linking|Built target' || true; }
}
run_tests() { # FOLDER CTEST-ARGUMENTS...
    local folder=$1
    shift
    ctest --test-dir "$folder" -j "$jobs" --output-on-failure --no-tests=error "$@"
}

if [ "${1:-}" != quick ]; then
    if command -v clang >/dev/null; then
        echo "clang: warnings are errors"
        build build-clang -DCMAKE_C_COMPILER=clang
    fi
    echo "sanitizers"
    build build-sanitize -DMUDMAN_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
    run_tests build-sanitize -LE 'python|shim'
fi
echo "release"
build build -DMUDMAN_CUDA=AUTO -DCMAKE_CUDA_ARCHITECTURES=90
run_tests build
