"""The sbatch files of slurm/, in a real Slurm that is started here: requeues, faults, threads, a search.

Fails where Slurm is installed and does not start; where it is not, root, who can install it
(tools/setup.sh), fails too, and anybody else is told so and skips.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_helpers import faulty
from job_helpers import (
    BINARY, ROOT, assert_same_run, checkpoints_of, lines_of, result_of, succeed,
)  # fmt: skip
from model_helpers import Case
from slurm_cluster import SlurmCluster, missing
from test_hangs import NO_EVALUATION, STOPPED
from test_owner import ENDLESS

LOOPS = 300
LONG = {
    "unlearn.loops": LOOPS, "evaluate.every_passes": 250, "unlearn.fork_every_n_loops": 50,
    "checkpoint.every_loops": 2,
}  # fmt: skip
SRUN = ("srun", "--mpi=pmix", "--kill-on-bad-exit=1", "--wait=5", "--time=2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if missing() and os.getuid() != 0:
        pytest.skip(f"no Slurm here: {', '.join(missing())} not installed; tools/setup.sh does it")
    assert not missing(), f"{', '.join(missing())}: not installed; run tools/setup.sh"
    with SlurmCluster(nodes=2, cpus=4) as cluster:
        yield cluster


def long_config(tiny: Case, folder: Path) -> Path:
    """The tiny case's, for runs that are disturbed."""
    text = tiny.config.read_text()
    for key, value in LONG.items():
        section, name = key.split(".")
        text, n = re.subn(rf"(?m)^  {name}: .*$", f"  {name}: {value}", text)
        if n == 0:
            text = text.replace(f"{section}:\n", f"{section}:\n  {name}: {value}\n")
    path = folder / "long.yaml"
    path.write_text(text)
    return path


def edited(name: str, folder: Path, changes: dict[str, str | None]) -> Path:
    """An sbatch file with marked lines edited, as its user would: by the line's beginning; None deletes."""
    lines = []
    changes = {"module load": None, "#SBATCH --gpus": None} | changes
    for line in (ROOT / "slurm" / name).read_text().splitlines():
        start = next((start for start in changes if line.startswith(start)), None)
        if start is None:
            lines.append(line)
            continue
        assert "# EDIT" in line, f"{name}: {line}"
        if changes[start] is not None:
            lines.append(start + changes[start])
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def training(config: Path, run: Path, ranks: int) -> dict[str, str]:
    return {
        "#SBATCH --ntasks-per-node=": f"{ranks}",
        "#SBATCH --cpus-per-task=": "1",
        "#SBATCH --time=": "10",
        "home=": str(ROOT),
        "program=": str(BINARY),
        "config=": str(config),
        "run=": str(run),
    }


def submit(cluster: SlurmCluster, script: Path, *options: str) -> str:
    out = f"--output={script.parent}/out"
    return cluster.tell("sbatch", "--parsable", f"--chdir={script.parent}", out, *options, script)


def ended(cluster: SlurmCluster, job: str) -> bool:
    return cluster.field(job, "JobState") in (
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
    )


def reaches(cluster: SlurmCluster, run: Path, loops: int) -> None:
    cluster.wait(f"loop {loops}", lambda: max(checkpoints_of(run), default=0) >= loops)


def said(script: Path) -> str:
    return (script.parent / "out").read_text()


# -- stopped and continued ----------------------------------------------------------------------------


def test_preempted_twice(cluster: SlurmCluster, tiny: Case, tmp_path: Path) -> None:
    """A signal to the ranks, then Slurm's own requeue: bit for bit the undisturbed run."""
    run, config = tmp_path / "run", long_config(tiny, tmp_path)
    changes = {"#SBATCH --partition=": "test", "#SBATCH --nodes=": "1"}
    script = edited("preemptible.sbatch", tmp_path, changes | training(config, run, 2))
    job = submit(cluster, script)
    reaches(cluster, run, 6)
    cluster.tell("scancel", "--signal=USR1", job)
    cluster.wait("exit 3", lambda: "stopped by a signal" in said(script))
    first = max(checkpoints_of(run))
    cluster.wait("the first requeue", lambda: cluster.field(job, "Restarts") == "1")
    reaches(cluster, run, first + 6)
    cluster.tell("scontrol", "requeue", job)
    cluster.wait("the second requeue", lambda: cluster.field(job, "Restarts") == "2")
    cluster.wait("the end", lambda: ended(cluster, job), 90)
    text = said(script)
    assert cluster.field(job, "JobState") == "COMPLETED", text
    assert 6 <= first < LOOPS and text.count("resuming from") == 2
    assert text.count("the job ends in ") == 3, "the limit is known"
    assert text.count("requeued") == 1, "what Slurm requeues is not requeued again"
    whole = tmp_path / "whole"
    succeed("run", config, f"output.dir={whole}", "checkpoint.every_loops=1000000", ranks=2)
    assert_same_run(whole, run)


def test_cancelled_stays_cancelled(cluster: SlurmCluster, tiny: Case, tmp_path: Path) -> None:
    """With a checkpoint; on two machines."""
    run = tmp_path / "run"
    changes = {"#SBATCH --nodes=": "2"} | training(long_config(tiny, tmp_path), run, 1)
    script = edited("many-nodes.sbatch", tmp_path, changes)
    job = submit(cluster, script)
    reaches(cluster, run, 6)
    cluster.tell("scancel", job)
    cluster.wait("the end", lambda: ended(cluster, job))
    assert cluster.field(job, "JobState") == "CANCELLED" and cluster.field(job, "Restarts") == "0"
    assert "stopped by a signal" in said(script) and "requeued" not in said(script)
    assert 6 <= max(checkpoints_of(run)) == len(lines_of(run, "unlearn")) < LOOPS


def test_killed_before_a_checkpoint_starts_over(
    cluster: SlurmCluster, tiny: Case, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"{tiny.config.read_text()}output:\n  dir: {run}\n")
    (run / "metrics.jsonl").write_text("{}\n")
    script = edited("one-node.sbatch", tmp_path, training(tiny.config, run, 1))
    job = submit(cluster, script)
    cluster.wait("the end", lambda: ended(cluster, job))
    assert cluster.field(job, "JobState") == "COMPLETED", said(script)
    assert result_of(run)["status"] == "done"


@pytest.mark.parametrize(
    ("first", "why"),
    [
        # A rank that hangs while it leaves, after the checkpoint for a stop.
        (faulty(1, "MPI_Finalize", 0, 0, "hang"), "stopped after a checkpoint"),
        # One that is gone, after some checkpoints.
        (faulty(1, "data", 400, 400, "kill"), "status (5|1..), after new checkpoints"),
        (faulty(1, "data", 400, 400, "hang"), "status (5|1..), after new checkpoints"),
    ],
)
def test_fault_that_is_requeued(
    cluster: SlurmCluster, tiny: Case, tmp_path: Path, first: list[str], why: str
) -> None:
    """And does not come again; bit for bit the undisturbed run."""
    run, config = tmp_path / "run", long_config(tiny, tmp_path)
    config.write_text(f"{config.read_text()}\ntimeout: 1\n")
    program = tmp_path / "program"
    quoted = " ".join(f"'{word}'" for word in first)
    program.write_text(
        '#!/bin/sh\n'
        f'[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] && exec {quoted} {BINARY} "$@"\n'
        f'exec {BINARY} "$@"\n'
    )
    program.chmod(0o755)
    changes = training(config, run, 2) | {"program=": str(program)}
    script = edited("one-node.sbatch", tmp_path, changes)
    job = submit(cluster, script)
    if "MPI_Finalize" in " ".join(first):
        reaches(cluster, run, 6)
        cluster.tell("scancel", "--signal=USR1", job)
    cluster.wait("the requeue", lambda: cluster.field(job, "Restarts") == "1")
    cluster.wait("the end", lambda: ended(cluster, job), 90)
    assert cluster.field(job, "JobState") == "COMPLETED", said(script)
    assert re.search(f"requeue.sh: {why}: requeued", said(script)), said(script)
    assert not (run / "stopped").exists() and not (run / "owner").exists()
    whole = tmp_path / "whole"
    succeed("run", config, f"output.dir={whole}", "checkpoint.every_loops=1000000", ranks=2)
    assert_same_run(whole, run)


def test_two_resumes_at_once(
    cluster: SlurmCluster, tiny: Case, finished: Path, tmp_path: Path
) -> None:
    """Two jobs on a machine each: one is refused by the other's name, on every rank."""
    for turn in range(int(os.environ.get("MUDMAN_OWNER_ROUNDS", "2"))):
        run = Path(shutil.copytree(finished, tmp_path / str(turn) / "run"))
        command = ("-N1", "-n2", BINARY, "resume", run, *ENDLESS)
        steps = [cluster.start(*SRUN, "-w", node, *command) for node in ("n1", "n2")]
        cluster.wait("one that is refused", lambda: any(s.poll() is not None for s in steps))
        loser, winner = sorted(steps, key=lambda step: step.poll() is None)
        out, _ = loser.communicate(timeout=20)
        owner = (run / "owner").read_text().split()
        assert loser.returncode == 2 and winner.poll() is None, out
        assert f"process {owner[3]}, Slurm job {owner[9]}, last seen" in out
        cluster.tell("scancel", "--signal=TERM", owner[9])
        told, _ = winner.communicate(timeout=20)
        assert winner.returncode == 3, told
        loops = [line["loop"] for line in lines_of(run, "unlearn")]
        assert loops == list(range(len(loops))) and checkpoints_of(run)[-1] == len(loops)


# -- faults under srun --------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["kill", "stop", "exit"])
@pytest.mark.parametrize("place", STOPPED)
def test_faulty_rank_on_another_machine(
    cluster: SlurmCluster, tiny: Case, tmp_path: Path, place: str, action: str
) -> None:
    (function, call), said = STOPPED[place]
    wrapper = faulty(1, function, call, call, action)
    began = time.monotonic()
    done = cluster.call(
        *SRUN,
        "-N2",
        "-n2",
        *wrapper,
        BINARY,
        "run",
        tiny.config,
        f"output.dir={tmp_path / 'run'}",
        "timeout=1",
        NO_EVALUATION,
    )
    assert done.returncode not in (0, 2, 3, 4) and time.monotonic() - began < 30
    if (place, action) == ("exit", "stop"):  # the other has gone, and cannot say so
        assert re.search("srun: First task exited 5s ago", done.stderr), done.stderr
    elif action == "stop":
        assert re.search(rf"rank 0: {said} has not ended after [16] s", done.stderr), done.stderr
    else:
        assert re.search("srun: error: n2: task 1: (Killed|Exited with exit code 9)", done.stderr)


# -- threads and searches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "threads"),
    [(["-n1"], 1), (["-n1", "-c2"], 2), (["-N2", "-n2", "-c2"], 2), (["-N1", "-n2", "-c2"], 2)],
)
def test_threads_are_what_slurm_gave(
    cluster: SlurmCluster, tiny: Case, options: list[str], threads: int
) -> None:
    """But no more than there are: this Slurm binds nobody and pretends CPUs, and ranks see that."""
    alone = ["env", "-u", "OMP_NUM_THREADS", "MUDMAN_DEBUG=1", BINARY, "eval", tiny.config]
    done = cluster.call(*SRUN, *options, *alone)
    assert done.returncode == 0, done.stderr
    sharing = 2 if "-N1" in options else 1
    most = max(1, len(os.sched_getaffinity(0)) // sharing)
    assert f": {min(threads, most)} threads a rank" in done.stderr, done.stderr


def test_without_pmix(cluster: SlurmCluster, tiny: Case) -> None:
    done = cluster.call("srun", "--mpi=none", "-n2", BINARY, "eval", tiny.config)
    assert done.returncode == 2 and done.stderr.count("srun --mpi=pmix") == 2
    assert done.stdout == ""


def test_search_in_a_job_array(cluster: SlurmCluster, tiny: Case, tmp_path: Path) -> None:
    """Two drivers share a study; one is stopped, requeued, and goes on."""
    trials = 12
    search = tmp_path / "search.yaml"
    search.write_text(
        f"config: {tiny.config}\noverrides: {{unlearn.loops: 400, evaluate.every_passes: 100000}}\n"
        "parameters:\n  unlearn.adv_lr: {low: 0.01, high: 1, log: true}\n"
    )
    script = edited(
        "search-array.sbatch", tmp_path,
        {
            "#SBATCH --array=": "0-1", "#SBATCH --cpus-per-task=": "1", "#SBATCH --time=": "10",
            "home=": str(ROOT), "program=": str(BINARY), "search=": str(search),
            "trials=": str(trials), "journal=": str(tmp_path / "journal"),
        },
    )  # fmt: skip
    array = cluster.tell(
        "sbatch", "--parsable", f"--chdir={tmp_path}", f"--output={tmp_path}/out-%a", script
    )

    def told(task: int) -> str:
        path = tmp_path / f"out-{task}"
        return path.read_text() if path.exists() else ""

    jobs = [f"{array}_{task}" for task in (0, 1)]
    cluster.wait("trials of both", lambda: all(re.search(r"\d+/12", told(task)) for task in (0, 1)))
    cluster.tell("scancel", "--batch", "--signal=USR1", jobs[0])
    cluster.wait("the requeue", lambda: cluster.field(jobs[0], "Restarts") == "1", 20)
    cluster.wait("the end", lambda: all(ended(cluster, job) for job in jobs))
    assert [cluster.field(job, "JobState") for job in jobs] == ["COMPLETED"] * 2, told(0) + told(1)
    assert "search.py: stopped; the same command continues" in told(0)
    done = re.findall(r"(?m)^\S* ?(\d+)/12.*: \d", told(0) + told(1))
    assert len(done) == trials, told(0) + told(1)
