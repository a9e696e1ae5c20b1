#!/usr/bin/env bash
# train.sh PROGRAM CONFIG RUN LAUNCHER... - starts a run in the folder RUN, or continues the one that
# is there, as often as Slurm starts the job: LAUNCHER... PROGRAM run CONFIG, or resume RUN. A run
# that ended before its first checkpoint is started again by resume, too.
# In an sbatch file: exec train.sh ...
set -eu
program=$1 config=$2 run=$3
shift 3

if [ -e "$run/config.yaml" ] || compgen -G "$run/checkpoints/*" >/dev/null; then
    command=(resume "$run")
else
    command=(run "$config" "output.dir=$run")
fi
echo "train.sh: $* $program ${command[*]} (job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0})" >&2
export MUDMAN_RUN=$run
exec "$(dirname "$0")/requeue.sh" "$@" "$program" "${command[@]}"
