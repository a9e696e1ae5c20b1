#!/bin/sh
# The rules of the layout that a program can check.
#   - Includes point one way: src -> io -> comm -> kernels -> src/base, and within src
#     run -> method -> parallel -> {config, model}. src/main.c is on the floor of run, and src/mudman.*,
#     a method, on the floor of method. Each outside library is seen by one layer only.
#   - No two headers have the same guard: the second would vanish without a word.
#   - What a comment cites as a source file exists.
#   - No source file is over 500 lines, and no C function over 60.
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
includes='
function offend(why) { print FILENAME ":" FNR ": " $0 ": " why }
# The floor, from the ground: 0 src/base ... 7 src/run; -1: outside the layers
function level(path) {
    if (path ~ /^src\/base\//) return 0
    if (path ~ /^kernels\//) return 1
    if (path ~ /^comm\//) return 2
    if (path ~ /^io\//) return 3
    if (path ~ /^src\/(config|model)\//) return 4
    if (path ~ /^src\/parallel\//) return 5
    if (path ~ /^src\/(method\/|mudman[.])/) return 6
    if (path ~ /^src\//) return 7
    return -1
}
function room(path) {
    return path ~ /^src\/config\// ? "config" : path ~ /^src\/model\// ? "model" : ""
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
    only("CUDA", "^(cuda|cublas)", "^(kernels/cuda/|comm/nccl|tests/ptx/runtime)")
    only("nccl.h", "^nccl", "^comm/nccl")
    only("cblas.h", "(^|/)(cblas|openblas_config|f77blas|lapacke)[.]h$", "^kernels/(cpu/|blas[.]c$)")
    only("oneDNN", "^(oneapi/dnnl/)?dnnl.*[.]h$", "^kernels/onednn[.]c$")
    mine = level(FILENAME)
    theirs = level(header)
    if (mine < 0)
        next # the tests may see everything of ours
    if (theirs > mine)
        offend("an include against the layers")
    else if (room(FILENAME) "" != "" && room(header) != "" && room(FILENAME) != room(header))
        offend("config and model do not see each other")
    else if (header ~ /^tests\// || header ~ /(^|\/)[.][.]?\// || (theirs < 0 && $0 ~ /include[ \t]*"/))
        offend("ours are named by layer, from the root; others in <>")
}'

guards='
FNR == 1 { first = 1 }
first && /^#ifndef / {
    first = 0
    if ($2 in seen)
        print FILENAME ":" FNR ": the guard " $2 " is that of " seen[$2] " too"
    else
        seen[$2] = FILENAME
}'

# `files` lists what there is. A path is looked up as it is, a bare name anywhere.
citations='
BEGIN {
    pattern = "[A-Za-z0-9_][A-Za-z0-9_./-]*[.](" cited ")($|[^A-Za-z0-9_.(])"
    while ((getline path < files) > 0) {
        there[path]
        sub(/.*\//, "", path)
        there[path]
    }
}
function exists(name) { return name in there }
/^[ \t]*#[ \t]*include/ { next }
{
    rest = $0
    comment = FILENAME ~ /[.](py|sh|cmake|txt)$/ ? rest ~ /#/ : rest ~ /^[ \t]*(\/?\*|\/\/)|\/\*|\/\//
    if (!comment)
        next
    while (match(rest, pattern)) {
        name = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH - 1)
        sub(/[^A-Za-z0-9_]$/, "", name)
        if (!exists(name) && name !~ /^(mpi|yaml|nccl|stdio)[.]h$/)
            print FILENAME ":" FNR ": cites " name ", which is not there"
    }
}'

# Definitions begin in the first column, after a line that ends one, or a comment, or nothing.
functions='
FNR == 1 { inside = start = 0; open = 1 }
inside && /^}/ {
    if (FNR - start + 1 > 60)
        print FILENAME ":" start ": a function of " FNR - start + 1 " lines"
    inside = 0
}
!inside && /^[A-Za-z_]/ && open { start = FNR }
!inside && /[)][ \t]*(const[ \t]*)?{$/ && start { inside = 1 }
{ open = /^$/ || /[};]$/ || /\*\/$/ || /^#/ }'

sources() {
    find $layers tests -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \
        -o -name '*.cc' \) -exec "$@" {} +
}
everything() {
    find . \( -name .git -o -name .venv -o -name 'build*' -o -name runs -o -name data \) -prune -o \
        -type f "$@"
}
list=$(mktemp)
trap 'rm -f "$list"' EXIT
everything -print | sed 's,^\./,,' >"$list"

offenders=$(
    sources awk "$includes"
    find $layers tests -type f -name '*.h' -exec awk "$guards" {} +
    sources awk -v files="$list" -v cited='c|h|cu|cuh|cc|inc|md' "$citations"
    sources awk "$functions"
    everything \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' -o -name '*.cc' \
        -o -name '*.py' -o -name '*.sh' \) -exec awk 'FNR == 501 { print FILENAME ": over 500 lines" }' {} +
)
[ -z "$offenders" ] && exit 0
printf '%s\n' "$offenders"
exit 1
