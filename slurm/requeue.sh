#!/usr/bin/env bash
# requeue.sh COMMAND... - runs COMMAND in a Slurm batch script so that it can stop and go on later:
#   - tells it when the job ends (SLURM_JOB_END_TIME, which old versions of Slurm do not set);
#   - hands the batch shell's SIGUSR1 and SIGTERM on as SIGUSR1, which srun and mpirun pass on to the
#     ranks (SIGTERM would make srun kill them);
#   - requeues the job when COMMAND stopped after a checkpoint (status 3). A rank that leaves late may
#     give srun another status: then the new file `stopped` in the run folder says so;
#   - requeues it when a rank, the network or a file system failed (status 5, or killed by a signal)
#     and a checkpoint was completed since the job started;
#   - starts COMMAND again, twice at most, when a signal killed it before it wrote anything.
# MUDMAN_RUN is the run folder; without it only status 3 counts.
# The last command of an sbatch file, started with exec, so that it is the batch shell.
set -u
run=${MUDMAN_RUN:-/nonexistent}

# The loops of the newest checkpoint, -1 where there is none.
newest() { (echo -1; ls "$run/checkpoints" 2>/dev/null | grep -xE '[0-9]+') | sort -n | tail -n 1; }
# Which file `stopped` there is.
stopped() { stat -c '%i %y' "$run/stopped" 2>/dev/null; }
# What there is besides the owner's file, to see whether it changes.
written() { find "$run" -mindepth 1 ! -name 'owner*' -printf '%P %s %T@\n' 2>/dev/null | sort | cksum; }

if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
    end=$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null)
    case $end in
    20??-??-??T??:??:??) export SLURM_JOB_END_TIME=$(date -d "$end" +%s) ;;
    *) echo "requeue.sh: squeue names no end of this job ('$end'): no time limit is known" >&2 ;;
    esac
fi

began=$(newest) marker=$(stopped) before=$(written)
asked=
pid=
trap 'asked=1 again=1; [ -z "$pid" ] || kill -USR1 "$pid" 2>/dev/null' USR1 TERM
for retry in 1 2 none; do
    "$@" &
    pid=$!
    [ -z "$asked" ] || kill -USR1 "$pid"
    again=1
    while [ -n "$again" ]; do # a signal ends a wait
        again=
        wait "$pid"
        status=$?
    done
    pid=
    if [ "$status" -le 128 ] || [ -n "$asked" ] || [ "$retry" = none ] || [ ! -d "${run%/*}" ] ||
        [ "$(written)" != "$before" ]; then
        break
    fi
    echo "requeue.sh: killed by a signal (status $status) before it wrote anything: started again" >&2
    sleep 2
done

why=
if [ "$status" = 3 ] || { [ -n "$(stopped)" ] && [ "$(stopped)" != "$marker" ]; }; then
    why="stopped after a checkpoint"
elif [ "$status" = 5 ] || [ "$status" -gt 128 ]; then
    if [ "$(newest)" -gt "$began" ]; then
        why="status $status, after new checkpoints"
    else
        echo "requeue.sh: status $status, and no checkpoint since the job started: not requeued" >&2
    fi
fi
if [ -n "$why" ]; then
    # Slurm has ended the job itself where it is not running any more: what was preempted or requeued
    # comes back by itself, what was cancelled must not; only what met its time limit needs it too.
    state=$(scontrol -o show job "$SLURM_JOB_ID" | grep -oE '(JobState|Reason)=[A-Za-z]*' | xargs)
    case $state in
    JobState=RUNNING* | *Reason=TimeLimit)
        echo "requeue.sh: $why: requeued" >&2
        scontrol requeue "$SLURM_JOB_ID"
        ;;
    *) echo "requeue.sh: $why, by Slurm itself: $state" >&2 ;;
    esac
fi
exit "$status"
