"""slurm/train.sh and requeue.sh by themselves: what they start, start again, and requeue.

Slurm's commands are stand-ins that write down how they are called; the launcher decides how the
program ends. tests/python/test_slurm.py does the same in a real Slurm.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from job_helpers import BINARY, ROOT, environment, result_of
from model_helpers import Case

FAULT = """#!/bin/bash
# The launcher: what the next line of the script of faults says, then, unless that ended it, the program.
line=$(head -n 1 {script}); sed -i 1d {script}
echo "$*" >>{log}
eval "$line"
exec "$@"
"""


@dataclass
class Batch:
    """A folder with a run that may be there already."""

    folder: Path
    config: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def begin(self, *checkpoints: int) -> None:
        (self.run / "checkpoints").mkdir(parents=True)
        (self.run / "config.yaml").write_text("")
        for loops in checkpoints:
            (self.run / "checkpoints" / str(loops)).mkdir()

    def end(
        self,
        *faults: str,
        state: str = "JobState=RUNNING Reason=None",
        squeue: str = "echo N/A",
        **variables: str,
    ) -> tuple[int, str]:
        """The status of the batch script and what it said; the launcher's calls end so."""
        stand_ins = self.folder / "bin"
        stand_ins.mkdir()
        (self.folder / "faults").write_text("".join(f"{line}\n" for line in faults))
        for name, text in {
            "squeue": f"#!/bin/sh\n{squeue}\n",
            "scontrol": f'#!/bin/sh\n[ "$1" = requeue ] && echo "scontrol $*" >&2\necho {state}\n',
            "launch": FAULT.format(script=self.folder / "faults", log=self.folder / "started"),
        }.items():
            (stand_ins / name).write_text(text)
            (stand_ins / name).chmod(0o755)
        done = subprocess.run(
            [ROOT / "slurm" / "train.sh", BINARY, self.config, self.run, "launch"],
            env=environment(1)
            | {"PATH": f"{stand_ins}:{os.environ['PATH']}", "SLURM_JOB_ID": "9"}
            | variables,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stderr

    def started(self) -> list[str]:
        """The program's commands."""
        return [line.split()[1] for line in (self.folder / "started").read_text().splitlines()]


REQUEUED = "scontrol requeue 9"
CHECKPOINT = "mkdir $MUDMAN_RUN/checkpoints/20"
MARK = "echo >$MUDMAN_RUN/stopped"


@pytest.fixture
def batch(tiny: Case, tmp_path: Path) -> Batch:
    return Batch(tmp_path, tiny.config)


@pytest.mark.parametrize(
    ("faults", "requeued"),
    [
        ("exit 3", True),
        (f"{MARK}; exit 137", True),  # a rank left late
        (f"{MARK}; exit 1", True),
        (f"{CHECKPOINT}; exit 5", True),
        (f"{CHECKPOINT}; exit 137", True),
        ("echo >$MUDMAN_RUN/metrics.jsonl; exit 5", False),
        ("echo >$MUDMAN_RUN/metrics.jsonl; exit 137", False),
        (f"{CHECKPOINT}; exit 1", False),
        (f"{CHECKPOINT}; exit 2", False),
        (f"{CHECKPOINT}; exit 4", False),
    ],
)
def test_what_is_requeued(batch: Batch, faults: str, requeued: bool) -> None:
    batch.begin(10)
    (batch.run / "stopped").write_text("of another time")
    status, told = batch.end(faults)
    assert status == int(faults.rpartition(" ")[2]) and (REQUEUED in told) == requeued, told
    assert batch.started() == ["resume"]


def test_cancelled_is_not_requeued(batch: Batch) -> None:
    batch.begin(10)
    _, told = batch.end(f"{CHECKPOINT}; exit 5", state="JobState=CANCELLED Reason=None")
    assert REQUEUED not in told


def test_killed_before_it_wrote_anything(batch: Batch) -> None:
    """Started again, twice at most; then the run is as any other."""
    status, told = batch.end("kill -SEGV $$", "kill -BUS $$")
    assert status == 0 and told.count("before it wrote anything: started again") == 2, told
    assert result_of(batch.run)["status"] == "done"


def test_killed_three_times(batch: Batch) -> None:
    status, told = batch.end(*["kill -SEGV $$"] * 4)
    assert status == 139 and batch.started() == ["run"] * 3 and REQUEUED not in told
    assert "no checkpoint since the job started: not requeued" in told


def test_killed_after_it_wrote(batch: Batch) -> None:
    batch.begin(10)
    status, _ = batch.end("echo >$MUDMAN_RUN/metrics.jsonl; kill -SEGV $$")
    assert status == 139 and batch.started() == ["resume"]


def test_run_before_its_first_checkpoint(batch: Batch) -> None:
    """Killed there, it starts again, with the config that it had."""
    batch.run.mkdir()
    text = f"{batch.config.read_text()}output:\n  dir: {batch.run}\n"
    (batch.run / "config.yaml").write_text(text)
    (batch.run / "metrics.jsonl").write_text('{"phase":"unlearn"')
    status, told = batch.end("")
    assert status == 0 and batch.started() == ["resume"], told
    assert "has no checkpoint yet: starting again" in told
    assert result_of(batch.run)["status"] == "done"


AT_TEN = """if [ "$SLURM_TIME_FORMAT" = standard ]; then echo 2030-01-02T10:00:00; else echo 2 Jan 10:00; fi"""


@pytest.mark.parametrize(
    ("squeue", "known"),
    [(AT_TEN, True), ("echo N/A", False), ("exit 1", False), ("echo 10:00", False)],
)
def test_when_the_job_ends(batch: Batch, squeue: str, known: bool) -> None:
    """Asked in one format, whatever the user's variable says; what is not known is said."""
    say = 'echo "ends ${SLURM_JOB_END_TIME:-unknown}" >&2; exit 2'
    _, told = batch.end(say, squeue=squeue, TZ="UTC", SLURM_TIME_FORMAT="%d %b %H:%M")
    assert ("ends 1893578400" if known else "ends unknown") in told
    assert ("no time limit is known" in told) != known
