#!/bin/sh
# What R ranks write, R' ranks read, R and R' from 1 to 4, also after damage; and one rank's full disk is
# every rank's failure. Usage: ranks_checkpoint.sh BUILD_DIR
set -eu
program=$(find "$1" -name test_checkpoint -type f | head -n 1)
[ -x "$program" ] || { echo "no test_checkpoint in $1" >&2; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1

ranks() { # ranks R MODE DIR [NUMBER]
    n=$1
    shift
    timeout 120 mpirun --bind-to none -n "$n" "$program" "$@" ||
        { echo "failed: $n ranks, $*" >&2; exit 1; }
}

# Flips the lowest bit of byte $2 of file $1.
flip() {
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "$(printf '\\%03o' $((byte ^ 1)))" |
        dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

for writers in 1 2 3 4; do
    run=$dir/$writers
    ranks $writers write "$run"
    for readers in 1 2 3 4; do
        ranks $readers read "$run"
    done
    last=$((writers - 1))
    # Other parts of the same names, where the environment says that HDF5 should look first.
    HDF5_VDS_PREFIX=$run/float32/checkpoints/10 ranks 2 read "$run"
    ranks $writers fail "$run" 0
    ranks $writers fail "$run" $last
    ranks 2 read "$run"
    for dtype in float32 bfloat16; do
        flip "$run/$dtype/checkpoints/20/part-0000$last.h5" 1000
    done
    for readers in 1 2 3 4; do # each finds the damage, or hears of it
        ranks $readers read "$run" 10 2> "$dir/log"
        grep -q "skipping checkpoint.*part-0000$last.h5: damaged" "$dir/log" ||
            { cat "$dir/log" >&2; exit 1; }
    done
done
echo "ranks_checkpoint: 1 to 4 ranks write, 1 to 4 read"
