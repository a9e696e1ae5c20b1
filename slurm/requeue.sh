#!/usr/bin/env bash
# requeue.sh COMMAND... - runs COMMAND in a Slurm batch script so that it can stop and go on later:
#   - tells it when the job ends (SLURM_JOB_END_TIME, which old versions of Slurm do not set);
#   - hands the batch shell's SIGUSR1 and SIGTERM on as SIGUSR1, which srun and mpirun pass on to the
#     ranks (SIGTERM would make srun kill them);
#   - requeues the job when COMMAND ends with status 3: stopped after a checkpoint.
# The last command of an sbatch file, started with exec, so that it is the batch shell.
set -u

if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
    # "N/A" and the like where there is no limit.
    if end=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s 2>/dev/null); then
        export SLURM_JOB_END_TIME=$end
    fi
fi

"$@" &
pid=$!
trap 'again=1; kill -USR1 "$pid" 2>/dev/null' USR1 TERM
again=1
while [ -n "$again" ]; do # a signal ends a wait
    again=
    wait "$pid"
    status=$?
done

if [ "$status" = 3 ]; then
    # Slurm has ended the job itself where it is not running any more: what was preempted or requeued
    # comes back by itself, what was cancelled must not; only what met its time limit needs it too.
    state=$(scontrol -o show job "$SLURM_JOB_ID" | grep -oE '(JobState|Reason)=[A-Za-z]*' | xargs)
    case $state in
    JobState=RUNNING* | *Reason=TimeLimit)
        echo "requeue.sh: stopped after a checkpoint: requeued" >&2
        scontrol requeue "$SLURM_JOB_ID"
        ;;
    *) echo "requeue.sh: stopped by Slurm itself: $state" >&2 ;;
    esac
fi
exit "$status"
