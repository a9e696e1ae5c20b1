"""What a job's limits do to a run: its time, which ends it with a checkpoint, and its CPUs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from job_helpers import checkpoints_of, lines_of, mudman
from model_helpers import Case


def limited(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + seconds)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_stops_before_the_time_limit(
    tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    run, many = tmp_path / "run", "unlearn.loops=1000000"
    limited(monkeypatch, 32)
    outcome = mudman(
        "run", tiny.config, f"output.dir={run}", many, "checkpoint.every_loops=1000000", ranks=ranks
    )
    assert outcome.status == 3 and outcome.seconds < 20, outcome.err
    (message,) = outcome.messages
    assert "stopped before the job's time limit after loop" in message
    assert len(checkpoints_of(run)) == 1 and checkpoints_of(run)[0] == len(lines_of(run, "unlearn"))
    # Without the limit it goes on; too short a limit for one step is no reason to do nothing.
    limited(monkeypatch, 20)
    done = checkpoints_of(run)[0]
    outcome = mudman("resume", run, ranks=ranks)
    assert outcome.status == 3 and checkpoints_of(run)[-1] == done + 1
    monkeypatch.setenv("SLURM_JOB_END_TIME", "12")
    outcome = mudman("resume", run, f"unlearn.loops={done + 2}", ranks=ranks)
    assert outcome.status == 0 and "SLURM_JOB_END_TIME=12 is past" in outcome.err


def test_a_time_limit_that_is_not_known(tiny: Case, tmp_path: Path) -> None:
    job, said = ["env", "SLURM_JOB_ID=1"], "no time limit is known"
    assert said in tiny.run(tmp_path / "job", wrapper=job).err
    assert said not in tiny.run(tmp_path / "no job").err


def test_relearning_and_the_time_limit(
    tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after loops of this process it is to be continued; if it alone does not fit, that is an error."""
    run, long = tmp_path / "run", ["relearn.passes=4000000", "evaluate.every_passes=400000"]
    limited(monkeypatch, 31)
    outcome = mudman("run", tiny.config, f"output.dir={run}", "unlearn.loops=0", *long)
    assert (
        outcome.status == 1 and "relearning does not fit into the job's time" in outcome.messages[0]
    )
    limited(monkeypatch, 31)
    outcome = mudman("resume", run, "unlearn.loops=1", *long)
    assert (
        outcome.status == 3
        and "before the job's time limit while relearning" in outcome.messages[0]
    )


# -- threads ------------------------------------------------------------------------------------------

CPUS = len(os.sched_getaffinity(0))
FIRST = min(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("ranks", "wrapper", "threads"),
    [
        (1, [], CPUS),
        (2, [], max(1, CPUS // 2)),
        (3, [], max(1, CPUS // 3)),
        (1, ["taskset", "-c", f"{FIRST}"], 1),
        (2, ["taskset", "-c", f"{FIRST}"], 1),
        (1, ["env", "SLURM_CPUS_PER_TASK=1"], 1),
        (1, ["env", "SLURM_CPUS_ON_NODE=1"], 1),
        (2, ["env", "OMP_NUM_THREADS=3"], 3),
        (1, ["env", "OMP_NUM_THREADS=3,1"], 3),
        (1, ["env", "OMP_PROC_BIND=true"], CPUS),
        (1, ["env", f"OMP_PLACES={{{FIRST}}}"], 1),
    ],
)
def test_ranks_share_the_cpus(tiny: Case, ranks: int, wrapper: list[str], threads: int) -> None:
    unset = ["env", "-u", "OMP_NUM_THREADS", "MUDMAN_DEBUG=1", *wrapper]
    outcome = mudman("eval", tiny.config, ranks=ranks, wrapper=unset)
    assert outcome.status == 0 and f": {threads} threads a rank" in outcome.err, outcome.err
    assert "bind-to none" not in outcome.err or "taskset" in wrapper


@pytest.mark.parametrize("text", ["", "0", "abc", f"{CPUS}x", "-1", "99999"])
def test_no_number_of_threads(tiny: Case, text: str) -> None:
    """As with no variable at all, and the warning names it: the runtime would give all CPUs to each rank."""
    wrapper = ["env", f"OMP_NUM_THREADS={text}", "MUDMAN_DEBUG=1"]
    outcome = mudman("eval", tiny.config, ranks=2, wrapper=wrapper)
    threads = max(1, CPUS // 2)
    assert outcome.status == 0 and f": {threads} threads a rank" in outcome.err, outcome.err
    assert f"warning: OMP_NUM_THREADS='{text}' is no number of threads" in outcome.err


def test_openmp_binds_ranks_to_the_same_cores(tiny: Case) -> None:
    outcome = mudman("eval", tiny.config, ranks=2, wrapper=["env", "OMP_PROC_BIND=close"])
    assert "warning: OMP_PROC_BIND=close binds the threads of 2 ranks to the same cores" in outcome.err
    assert "bind-to none" not in outcome.err and outcome.err.count("warning") == 1
    assert mudman("eval", tiny.config, wrapper=["env", "OMP_PROC_BIND=close"]).err == ""


def test_one_rank_beside_the_tasks_of_a_job(tiny: Case) -> None:
    """A batch script that forgot srun; within a step, or under mpirun, the user chose the ranks."""
    tasks = ["env", "SLURM_JOB_ID=1", "SLURM_NTASKS=4"]
    said = "warning: the Slurm job has 4 tasks, but this is one rank outside of them"
    assert said in mudman("eval", tiny.config, wrapper=tasks).err
    assert "tasks" not in mudman("eval", tiny.config, wrapper=[*tasks[:2], "SLURM_NTASKS=1"]).err
    assert "tasks" not in mudman("eval", tiny.config, ranks=2, wrapper=tasks).err
