"""No rank hangs: one that dies, leaves or stalls ends the job on all of them, with a message, in time."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_helpers import faulty
from job_helpers import Job, Outcome, checkpoints_of, succeed
from model_helpers import Case

# In a loop; six times as long where a rank waits for another's files.
TIMEOUT = 1.5
STOPPED = {
    # What the other rank says of the one that stops: where, and in what.
    "start-up": (("MPI_Init_thread", 0), r"start-up: connection #1 \(MPI\)"),
    "evaluation": (("data", 0), r"evaluation after pass 0: sum #\d+ \(.*MPI\)"),
    "loop": (("data", 20), r"loop \d: (reduction|sum|maximum|agreement) #\d+ \(.*MPI\)"),
    "checkpoint": (("save", 0), r"(checkpoint after )?loop \d: \w+ #\d+ \(.*MPI\)"),
    "relearning": (("data", 250), r"relearning step \d: reduction #\d+ \(.*MPI\)"),
    "exit": (("MPI_Finalize", 0), r"exit: departure #1 \(MPI\)"),
}
# But the first and the last: the loops that go on beside a checkpoint are all that may wait.
NO_EVALUATION = "evaluate.every_passes=100000"
RANKS = (0, 1)


def start(tiny: Case, run: Path, rank: int, place: tuple[str, int], action: str) -> Job:
    function, call = place
    return Job(
        "run", tiny.config, f"output.dir={run}", f"timeout={TIMEOUT}", NO_EVALUATION, ranks=2,
        wrapper=faulty(rank, function, call, call, action),
    )  # fmt: skip


@pytest.fixture(scope="module")
def stalled(
    tiny: Case, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], tuple[Path, Job]]]:
    """A job for every place and rank, one rank of which is stopped there. They wait side by side."""
    folder, jobs = tmp_path_factory.mktemp("stalled"), {}
    for place, (where, _) in STOPPED.items():
        for rank in RANKS:
            run = folder / f"{place}-{rank}"
            jobs[place, rank] = run, start(tiny, run, rank, where, "stop")
    yield jobs
    for _, job in jobs.values():
        if job.running():
            job.kill()


LOST = 5


def assert_ended(job: Job, outcome: Outcome) -> None:
    """Unlike a run that is done, or stopped by itself; and nobody is left."""
    assert outcome.status not in (0, 1, 2, 3, 4), outcome.err
    end = time.monotonic() + 5
    while job.ranks() and time.monotonic() < end:
        time.sleep(0.05)
    assert not job.ranks()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("place", STOPPED)
def test_rank_that_stalls(stalled: dict, place: str, rank: int) -> None:
    run, job = stalled[place, rank]
    outcome = job.wait(40)
    assert_ended(job, outcome)
    assert outcome.status == LOST, outcome.err
    # A checkpoint is written while the loops go on: the wait may be for either.
    waits = {"start-up": "9", "checkpoint": "(1.5|9)", "exit": "9"}
    said = rf"rank {1 - rank}: {STOPPED[place][1]} has not ended after {waits.get(place, '1.5')} s: "
    assert re.search(said, outcome.err), outcome.err
    if place == "checkpoint":
        assert checkpoints_of(run) == []
        assert not (run / "checkpoints" / "3").exists()


def test_every_rank_waits_for_the_same_file(tiny: Case, tmp_path: Path) -> None:
    """So that none waits for another, or is left to see it."""
    started = [
        Job(
            "run", tiny.config, f"output.dir={tmp_path / str(ranks)}", "timeout=1", NO_EVALUATION,
            ranks=ranks, wrapper=faulty(-1, "save", 0, 0, "hang"),
        )
        for ranks in (1, 2)
    ]  # fmt: skip
    for job in started:
        outcome = job.wait(30)
        assert_ended(job, outcome)
        assert outcome.status == LOST
        said = r"rank \d: checkpoint after loop \d: nothing has gone on for 9 s: this process hangs"
        assert re.search(said, outcome.err), outcome.err


def test_fault_of_mpi_whose_end_hangs(tiny: Case, tmp_path: Path) -> None:
    """Another exit status than a fault of the program, and a bound for MPI_Abort."""
    job = Job(
        "run", tiny.config, f"output.dir={tmp_path / 'run'}", NO_EVALUATION, ranks=2,
        wrapper=[*faulty(1, "data", 20, 20, "error"), "MUDMAN_FAULT_ABORT=1"],
    )  # fmt: skip
    outcome = job.wait(30)
    assert outcome.status == LOST and "MPI error" in outcome.err, outcome.err
    assert_ended(job, outcome)


def test_mpi_without_threads(tiny: Case, tmp_path: Path) -> None:
    outcome = Job("eval", tiny.config, wrapper=faulty(0, "MPI_Init_thread", 0, 0, "single")).wait()
    assert outcome.status == 1 and "this MPI allows no threads" in outcome.err


@pytest.mark.parametrize("action", ["kill", "exit"])
@pytest.mark.parametrize("place", STOPPED)
def test_rank_that_is_gone(tiny: Case, tmp_path: Path, place: str, action: str) -> None:
    """The launcher sees it; it says so, and the others don't wait for their timeout."""
    job = start(tiny, tmp_path / "run", 1, STOPPED[place][0], action)
    outcome = job.wait()
    assert_ended(job, outcome)
    assert outcome.seconds < 6 * TIMEOUT
    assert re.search(r"(?s)mpirun (has )?(noticed|exited|detected)", outcome.err), outcome.err


def test_whole_job_that_is_suspended_goes_on(tiny: Case, tmp_path: Path) -> None:
    """Time in which nobody ran is nobody's fault."""
    run = tmp_path / "run"
    job = Job(
        "run", tiny.config, f"output.dir={run}", "timeout=2", "unlearn.loops=1000000",
        "checkpoint.every_loops=1000000", ranks=2,
    )  # fmt: skip
    job.wait_until(
        lambda: (
            (run / "metrics.jsonl").is_file()
            and (run / "metrics.jsonl").read_text().count('"unlearn"') > 9
        )
    )
    job.signal_ranks(signal.SIGSTOP)
    time.sleep(5)
    job.signal_ranks(signal.SIGCONT)
    time.sleep(0.5)
    job.signal_ranks(signal.SIGTERM)
    assert job.wait().status == 3


def test_tasks_that_do_not_find_each_other(
    tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As srun without PMIx starts them: each would take itself for the only one."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    outcome = Job("run", tiny.config, f"output.dir={tmp_path / 'run'}").wait()
    assert outcome.status == 2
    (message,) = outcome.messages
    assert "4 tasks" in message and "srun --mpi=pmix" in message
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    succeed("inspect", tiny.data / "retain.h5")
