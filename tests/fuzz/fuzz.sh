#!/usr/bin/env bash
# fuzz.sh - fuzzes one target; README.md.
#   fuzz.sh TARGET SECONDS FOLDER [BUILD]   corpus and finds under FOLDER; BUILD: build-fuzz
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$1 seconds=$2 work=$(realpath -m "$3/$1") build=$(realpath "${4:-$here/../../build-fuzz}")
mkdir -p "$work/corpus" "$work/finds" "$here/corpus/$target"
python3 "$here/seeds.py" "$target" "$work"
cd "$work"
more=("$here/corpus/$target")
[ -s dictionary ] && more+=(-dict=dictionary)
# Of HDF5 and Open MPI, what the process keeps to its end is no leak of an input; our own blocks and
# HDF5's handles are counted after each.
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 OMP_NUM_THREADS=1
exec "$build/tests/libfuzzer_$target" -max_total_time="$seconds" -max_len=16384 -timeout=10 \
    -malloc_limit_mb=256 -rss_limit_mb=2048 -artifact_prefix=finds/ \
    -print_final_stats=1 corpus seeds "${more[@]}"
