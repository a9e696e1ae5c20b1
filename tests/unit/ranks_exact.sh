#!/bin/sh
# reduction: exact: 2, 3, 4 and 8 ranks give every line that one rank gives (test_exact.c), but those of
# leaves that are fewer than the ranks. Usage: ranks_exact.sh BUILD_DIR
set -eu
program=$(find "$1" -name test_exact -type f | head -n 1)
[ -x "$program" ] || { echo "no test_exact in $1" >&2; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMP_NUM_THREADS=1

for ranks in 1 2 3 4 8; do
    timeout 120 mpirun --bind-to none -n "$ranks" "$program" "$dir/$ranks" ||
        { echo "failed: $ranks ranks" >&2; exit 1; }
    if [ "$ranks" -le 3 ]; then # leaves of 3, 3 and 2 sequences
        cp "$dir/1" "$dir/want"
    else
        grep -v '^[^ ]*/3 ' "$dir/1" > "$dir/want"
    fi
    [ "$(wc -l < "$dir/want")" -gt 200 ] || { echo "hardly any lines" >&2; exit 1; }
    diff "$dir/want" "$dir/$ranks" > "$dir/log" ||
        { echo "one rank (<) and $ranks (>) differ:" >&2; head -n 20 "$dir/log" >&2; exit 1; }
done
echo "ranks_exact: 1, 2, 3, 4 and 8 ranks: $(wc -l < "$dir/1") lines the same"
