#!/usr/bin/env bash
# train.sh PROGRAM CONFIG RUN LAUNCHER... - starts a run in the folder RUN, or continues the one that
# is there, as often as Slurm starts the job: LAUNCHER... PROGRAM run CONFIG, or resume RUN.
# In an sbatch file: exec train.sh ...
set -eu
program=$1 config=$2 run=$3
shift 3

if compgen -G "$run/checkpoints/[0-9]*" >/dev/null; then
    command=(resume "$run")
else
    # A run that was killed before its first checkpoint: start over, and keep what it left.
    if [ -e "$run" ]; then
        mv "$run" "$run.before-${SLURM_JOB_ID}-${SLURM_RESTART_COUNT:-0}"
    fi
    command=(run "$config" "output.dir=$run")
fi
echo "train.sh: $* $program ${command[*]} (job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0})" >&2
exec "$(dirname "$0")/requeue.sh" "$@" "$program" "${command[@]}"
