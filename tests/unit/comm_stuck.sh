#!/bin/sh
# A job of two ranks of which one doesn't come to a collective ends, on both, with a message and in time.
# Usage: comm_stuck.sh PROGRAM MODE TRANSPORT MESSAGE    see comm_stuck.c; MESSAGE: a basic expression
set -eu
[ $# -eq 4 ] && [ -x "$1" ] || { echo "usage: comm_stuck.sh PROGRAM MODE TRANSPORT MESSAGE" >&2; exit 2; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1
begin=$(date +%s)
status=0
text=$(timeout 40 mpirun --bind-to none -n 2 "$1" "$2" "$3" 2>&1) || status=$?
seconds=$(($(date +%s) - begin))
printf '%s\n' "$text"
echo "exit status $status after $seconds s"
[ "$status" -ne 0 ] && [ "$status" -ne 124 ] && [ "$seconds" -lt 20 ]
printf '%s\n' "$text" | grep -q "$4"
