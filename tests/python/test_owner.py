"""A run folder belongs to one job: a second one is refused by name, a dead one is taken over."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from job_helpers import Job, checkpoints_of, fail, lines_of, mudman, result_of, succeed
from model_helpers import Case

ROUNDS = int(os.environ.get("MUDMAN_OWNER_ROUNDS", "2"))
# It ends by a signal only, and is never in a checkpoint for long.
ENDLESS = ("unlearn.loops=1000000", "checkpoint.every_loops=50", "evaluate.every_passes=1000000")
NAMED = r"run belongs to another job: host \S+, process {}, last seen \d+ s ago"


def record(**changes: object) -> str:
    """An owner's file, of this process by default."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    values = {
        "host": "elsewhere", "pid": os.getpid(), "start": fields[19],
        "place": f"{boot}/{os.readlink('/proc/self/ns/pid')}", "job": "-", "restart": 0,
    } | changes  # fmt: skip
    return "".join(f"{name} {value}\n" for name, value in values.items()) + "end\n"


def put(run: Path, text: str, age: float = 0) -> None:
    (run / "owner").write_text(text)
    os.utime(run / "owner", (time.time() - age,) * 2)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def assert_one_went_on(jobs: list[Job], run: Path) -> None:
    """And the other was refused by its name; then it is stopped, and every loop is there once."""
    end = time.monotonic() + 40
    while all(job.running() for job in jobs) and time.monotonic() < end:
        time.sleep(0.01)
    loser, winner = sorted(jobs, key=Job.running)
    assert winner.running(), "both ended"
    refused = loser.wait()
    assert refused.status == 2 and len(refused.messages) == 1, refused.err
    pid = int((run / "owner").read_text().split()[3])
    assert pid in winner.ranks()
    assert re.search(NAMED.format(pid), refused.messages[0]), refused.err
    before = len(lines_of(run, "unlearn"))
    winner.wait_until(lambda: len(lines_of(run, "unlearn")) > before)
    winner.signal_ranks(signal.SIGTERM)
    assert winner.wait().status == 3
    loops = [line["loop"] for line in lines_of(run, "unlearn")]
    assert loops == list(range(len(loops))) and checkpoints_of(run)[-1] == len(loops)
    assert not (run / "owner").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_resumes_at_once(finished: Path, tmp_path: Path, ranks: int) -> None:
    for turn in range(ROUNDS):
        run = Path(shutil.copytree(finished, tmp_path / str(turn) / "run"))
        jobs = [Job("resume", run, *ENDLESS, ranks=ranks) for _ in range(2)]
        assert_one_went_on(jobs, run)


def test_two_runs_at_once(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    jobs = [Job("run", tiny.config, f"output.dir={run}", *ENDLESS, ranks=2) for _ in range(2)]
    assert_one_went_on(jobs, run)


def test_killed_owner_is_taken_over(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job("run", tiny.config, f"output.dir={run}", *ENDLESS)
    job.wait_until(lambda: len(checkpoints_of(run)) > 0)
    (pid,) = job.ranks()
    job.kill()
    told = succeed("resume", run, f"unlearn.loops={checkpoints_of(run)[-1] + 5}").err
    assert re.search(rf"belonged to a job that is gone \(host \S+, process {pid}, .*taken over", told)
    assert result_of(run)["status"] == "done" and not (run / "owner").exists()


@pytest.mark.parametrize(
    ("changes", "age", "taken"),
    [
        ({}, 1000, False),  # it lives, whatever its heartbeat says
        ({"start": 1}, 0, True),  # its process id is another's now
        ({"pid": 4194304}, 0, True),  # beyond the largest
        ({"place": "other/pid:[1]"}, 0, False),
        ({"place": "other/pid:[1]"}, 200, True),
        ({"place": "other/pid:[1]", "job": 7}, 0, True),  # the job before it was requeued
        ({"place": "other/pid:[1]", "job": 7, "restart": 1}, 0, False),  # another step of it
        ({"place": "other/pid:[1]", "job": 8}, 0, False),
    ],
)
def test_who_is_dead(
    run: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, age: float, taken: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    text = record(**changes)
    put(run, text, age)
    outcome = mudman("resume", run, "relearn.passes=0")
    assert outcome.status == (0 if taken else 2), outcome.err
    named = f"host elsewhere, process {changes.get('pid', os.getpid())}"
    named += f", Slurm job {changes['job']}" if "job" in changes else ""
    assert named in outcome.err and ("taken over\n" in outcome.err) == taken
    if not taken:
        assert (run / "owner").read_text() == text
        assert named in fail(2, "run", run / "config.yaml", f"output.dir={run}")


@pytest.mark.parametrize("age", [0, 200])
def test_owner_without_a_name(run: Path, age: float) -> None:
    """Its writer is at it, or died between two calls."""
    put(run, "", age)
    outcome = mudman("resume", run, "relearn.passes=0")
    assert outcome.status == (2 if age == 0 else 0) and "not written its name" in outcome.err


def test_owner_that_was_taken_for_dead(tiny: Case, tmp_path: Path) -> None:
    """It publishes nothing any more, not even with checkpoint.on_error: continue."""
    run = tmp_path / "run"
    job = Job(
        "run", tiny.config, f"output.dir={run}", *ENDLESS, "checkpoint.on_error=continue", ranks=2
    )
    job.wait_until(lambda: len(checkpoints_of(run)) > 0)
    text = record(pid=4194304)
    put(run, text)
    outcome = job.wait(20)
    assert outcome.status == 2, outcome.err
    assert "taken over by another job (host elsewhere, process 4194304" in outcome.messages[0]
    assert (run / "owner").read_text() == text


def test_owner_file_that_somebody_removed(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job("run", tiny.config, f"output.dir={run}", *ENDLESS)
    job.wait_until(lambda: len(checkpoints_of(run)) > 0)
    text = (run / "owner").read_text()
    (run / "owner").unlink()
    job.wait_until(lambda: (run / "owner").exists() and (run / "owner").read_text().endswith("end\n"))
    assert (run / "owner").read_text() == text
    job.signal_ranks(signal.SIGTERM)
    assert job.wait().status == 3 and not (run / "owner").exists()


def test_heartbeat(tiny: Case, tmp_path: Path) -> None:
    """The file's time goes on, also where no loop ends."""
    run = tmp_path / "run"
    job = Job("run", tiny.config, f"output.dir={run}", *ENDLESS)
    job.wait_until(lambda: (run / "owner").exists())
    began = (run / "owner").stat().st_mtime
    job.wait_until(lambda: (run / "owner").stat().st_mtime > began + 3, 20)
    job.signal_ranks(signal.SIGTERM)
    assert job.wait().status == 3


def test_checkpoint_that_was_being_replaced(run: Path) -> None:
    """The job ended between the two renames."""
    folder, newest = run / "checkpoints", checkpoints_of(run)[-1]
    for loops in checkpoints_of(run)[:-1]:
        shutil.rmtree(folder / str(loops))
    (folder / str(newest)).rename(folder / f".replaced-{newest}")
    told = succeed("resume", run, "relearn.passes=0").err
    assert f"{newest} of {newest} loops done" in told
