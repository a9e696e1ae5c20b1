#!/bin/sh
# A job of three ranks of which one makes another call ends with a message that names it; and one whose
# ranks agree does not.
# Usage: comm_differs.sh PROGRAM MODE MESSAGE    see comm_differs.c; MESSAGE: a basic expression
set -eu
[ $# -eq 3 ] && [ -x "$1" ] || { echo "usage: comm_differs.sh PROGRAM MODE MESSAGE" >&2; exit 2; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 MUDMAN_CHECK_COLLECTIVES=1
status=0
text=$(timeout 40 mpirun --bind-to none -n 3 "$1" "$2" 2>&1) || status=$?
printf '%s\nexit status %s\n' "$text" "$status"
[ "$2" = same ] && wanted=0 || wanted=1
[ "$status" -eq "$wanted" ]
printf '%s\n' "$text" | grep -q "$3"
