#!/bin/sh
# The one rule of the layout: includes point one way, src -> io -> comm -> kernels -> src/base, and each
# outside library is seen by one layer only. Also: no source file over 600 lines.
# Usage: check_includes.sh ROOT    prints the offenders and exits 1, or exits 0
set -eu
[ $# -eq 1 ] && [ -d "$1" ] || { echo "usage: check_includes.sh ROOT" >&2; exit 2; }
cd "$1"

layers="src io comm kernels"
for layer in $layers src/base; do
    [ -n "$(find "$layer" -type f -name '*.[ch]' 2>/dev/null | head -n 1)" ] ||
        { echo "$layer: no sources: is $1 the repository?" >&2; exit 1; }
done

# Prints FILE:LINE: TEXT: why, for every include line of the files given that breaks the rule.
# Comments between '#' and the name, and line breaks there, are not found: no one writes those.
check='
function offend(why) { print FILENAME ":" FNR ": " $0 ": " why }
# 0 src/base, 1 kernels, 2 comm, 3 io, 4 src; -1: outside the layers
function level(path) {
    if (path ~ /^src\/base\//) return 0
    if (path ~ /^kernels\//) return 1
    if (path ~ /^comm\//) return 2
    if (path ~ /^io\//) return 3
    if (path ~ /^src\//) return 4
    return -1
}
function only(name, pattern, places) {
    if (header ~ pattern && FILENAME !~ places)
        offend(name " belongs to another place")
}
/^[ \t]*#[ \t]*(include|include_next|import)[ \t]*[<"]/ {
    header = $0
    sub(/^[^<"]*[<"]/, "", header)
    sub(/[>"].*/, "", header)
    only("mpi.h", "^(mpi|mpi-ext)[.]h$", "^(comm|tests)/")
    only("hdf5.h", "^(hdf5.*|H5[A-Za-z0-9]*)[.]h$", "^(io|tests)/")
    only("yaml.h", "^yaml[.]h$", "^src/config/yaml[.]c$")
    only("CUDA", "^(cuda|cublas)", "^(kernels/cuda/|comm/nccl)")
    only("nccl.h", "^nccl", "^comm/nccl")
    only("cblas.h", "(^|/)(cblas|openblas_config|f77blas|lapacke)[.]h$", "^kernels/(cpu/|blas[.]c$)")
    mine = level(FILENAME)
    theirs = level(header)
    if (mine < 0)
        next # the tests may see everything of ours
    if (theirs > mine)
        offend("an include against the layers")
    else if (header ~ /^tests\// || header ~ /(^|\/)[.][.]?\// || (theirs < 0 && $0 ~ /include[ \t]*"/))
        offend("ours are named by layer, from the root; others in <>")
}'

offenders=$(
    find $layers tests -type f \
        \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \) \
        -exec awk "$check" {} +
    find . \( -name .git -o -name .venv -o -name 'build*' -o -name runs -o -name data \) -prune -o \
        -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' -o -name '*.py' \
        -o -name '*.sh' \) -exec awk 'FNR == 601 { print FILENAME ": over 600 lines" }' {} +
)
[ -z "$offenders" ] && exit 0
printf '%s\n' "$offenders"
exit 1
