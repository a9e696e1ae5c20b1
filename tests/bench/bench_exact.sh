#!/bin/sh
# What reduction: exact costs: ms a MUDMAN loop beside reduction: fast on the same batches, two cores as
# one rank of two threads and as two ranks. The ways take turns; the quickest loop of all counts, which
# other work on the machine disturbs least.
# Usage: bench_exact.sh BUILD_DIR [ROUNDS] [SHAPE ...]    (shapes: bench_shapes.h)
set -eu
program=$(find "$1" -name bench_loop -type f | head -n 1)
[ -x "$program" ] || { echo "no bench_loop in $1" >&2; exit 1; }
rounds=${2:-3}
shift
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- demo pythia-14m
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1

ways="fast exact/4 exact/2 exact/1" # exact/N: in leaves of N sequences of the 8

measure() { # measure WAY SHAPE RANKS
    way=$1 shape=$2 ranks=$3
    case $way in
    fast) set -- --reduction fast ;;
    *) set -- --reduction exact --micro "${way#exact/}" ;;
    esac
    mpirun -n "$ranks" --bind-to none "$program" --shape "$shape" --threads $((3 - ranks)) \
        --batch 8 --repeats 9 "$@" | sed -n 's/.* least_ms=\([0-9.]*\) .*/\1/p' >> "$(file "$way" "$shape" "$ranks")"
}

file() { # file WAY SHAPE RANKS
    echo "$dir/$2-$3-$(echo "$1" | tr / -)"
}

for shape in "$@"; do
    for round in $(seq "$rounds"); do
        for way in $ways; do
            for ranks in 1 2; do
                measure "$way" "$shape" "$ranks"
            done
        done
    done
    for ranks in 1 2; do
        fast=$(sort -n "$(file fast "$shape" "$ranks")" | head -n 1)
        for way in $ways; do
            least=$(sort -n "$(file "$way" "$shape" "$ranks")" | head -n 1)
            echo "$shape $ranks $way $least $fast" |
                awk '{ printf "shape=%s ranks=%d reduction=%s ms=%.1f times_fast=%.2f\n", $1, $2, $3, $4, $4 / $5 }'
        done
    done
done
