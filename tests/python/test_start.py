"""How the program starts and ends: the BLAS library's kernels and memory, a rank that hangs alone, and
stop signals that come twice."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from fault_helpers import LIBRARY, faulty
from job_helpers import Job, fail, lines_of, mudman, result_of, succeed
from model_helpers import Case, random_case, random_llama

PRETEND = ["env", "-u", "OPENBLAS_CORETYPE", f"LD_PRELOAD={LIBRARY}", "MUDMAN_FAULT_CORE=Prescott"]
ANEW = re.compile(r"^OpenBLAS \S+ chose its Prescott kernels, .* OPENBLAS_CORETYPE=(\w+)$", re.M)
LONG = ["unlearn.loops=1000000", "evaluate.every_passes=1000000"]
SELDOM = "checkpoint.every_loops=1000000"


# -- kernels ------------------------------------------------------------------------------------------


def wanted() -> str:
    """The kernels for this processor, which must be newer than those of 2004."""
    level = re.search(r"^processor: x86-64-v([34])", succeed("--version").out, re.M)
    if not level:
        pytest.skip("no processor for better kernels")
    return {"3": "Haswell", "4": "SkylakeX"}[level[1]]


def test_starts_anew_with_better_kernels() -> None:
    outcome = succeed("--version", wrapper=PRETEND)
    assert ANEW.findall(outcome.err) == [wanted()]
    assert f", {wanted()} kernels" in outcome.out


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_job_starts_anew_once(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """One line from all ranks, before anything else; arguments, folder and results stay."""
    core, run = wanted(), tmp_path / "run"
    outcome = tiny.run(run, "unlearn.loops=2", wrapper=PRETEND, ranks=ranks)
    assert ANEW.findall(outcome.err) == [core], outcome.err
    assert len(lines_of(run, "unlearn")) == 2 and result_of(run)["status"] == "done"


def test_starting_anew_keeps_the_cpus(tiny: Case) -> None:
    """OpenMP binds the thread that starts the program anew: that is not all there is to use."""
    debug = ["env", "-u", "OMP_NUM_THREADS", "OMP_PROC_BIND=true", "MUDMAN_DEBUG=1"]
    outcome = succeed("eval", tiny.config, wrapper=[*debug, *PRETEND])
    assert ANEW.findall(outcome.err) == [wanted()]
    assert f": {len(os.sched_getaffinity(0))} threads a rank" in outcome.err


def test_the_user_s_choice_is_respected() -> None:
    chosen = ["env", "OPENBLAS_CORETYPE=Prescott"]
    outcome = succeed("--version", wrapper=chosen)
    assert outcome.err == "" and ", Prescott kernels" in outcome.out
    nothing = ["env", "OPENBLAS_CORETYPE=", *PRETEND[3:]]
    assert ANEW.findall(succeed("--version", wrapper=nothing).err) == [wanted()]


def test_good_kernels_are_left_alone() -> None:
    able = ["env", "-u", "OPENBLAS_CORETYPE", f"LD_PRELOAD={LIBRARY}", "MUDMAN_FAULT_CORE=Cooperlake"]
    assert succeed("--version", wrapper=able).err == ""


# -- memory -------------------------------------------------------------------------------------------

NO_MEMORY = "no memory for products of matrices: for {} thread"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("user", ["", "GOMP_SPINCOUNT=7", "OMP_WAIT_POLICY=active"])
def test_threads_wait_quietly(tiny: Case, tmp_path: Path, threads: int, user: str) -> None:
    """Where there are several, and the user has not said how; before OpenMP reads it."""
    without = ["env", "-u", "OMP_WAIT_POLICY", *filter(None, [user])]
    job = Job(
        "run", tiny.config, f"output.dir={tmp_path / 'run'}", *LONG, threads=threads, wrapper=without
    )
    job.wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    [pid] = job.ranks()
    held = set(Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"))
    job.kill()
    assert ("GOMP_SPINCOUNT=1000" in held) == (threads == 2 and not user)
    assert not user or user in held


def test_no_memory_when_the_library_is_loaded(tiny: Case, tmp_path: Path) -> None:
    """It would try for ever, before main."""
    if "CUDA: not in this build" not in succeed("--version").out:
        pytest.skip("CUDA's libraries are larger than the limit: the loader ends it")
    run = f"output.dir={tmp_path / 'run'}"
    limited = ["prlimit", f"--as={150 << 20}"]
    assert NO_MEMORY.format(1) in fail(1, "run", tiny.config, run, wrapper=limited, limit=10)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("reduction", ["fast", "exact"])
def test_no_memory_for_the_first_product(tiny: Case, tmp_path: Path, ranks: int, reduction: str) -> None:
    """64 threads take 8 GiB of address space; on every rank it is known before anything is made."""
    run = tmp_path / "run"
    limited = ["prlimit", f"--as={3 << 30}"]
    message = fail(
        1, "run", tiny.config, f"output.dir={run}", f"reduction={reduction}", wrapper=limited,
        ranks=ranks, threads=64, limit=20,
    )  # fmt: skip
    assert NO_MEMORY.format(64) in message and "ulimit -v" in message
    assert not run.exists()


def test_no_memory_for_another_thread(tiny: Case, tmp_path: Path) -> None:
    """Each thread multiplies by itself in attention. Whatever the limit leaves: no thread waits for ever for a
    buffer, and no library crashes."""
    for step in range(12):
        limited = ["prlimit", f"--as={(600 + 50 * step) << 20}"]
        run = f"output.dir={tmp_path / str(step)}"
        outcome = mudman("run", tiny.config, run, wrapper=limited, threads=2, limit=20)
        if outcome.status == 127:  # CUDA's libraries did not fit, and the loader said so
            assert "failed to map segment" in outcome.err
            continue
        assert outcome.status in (0, 1), outcome.err
        assert outcome.status == 0 or "memory" in outcome.messages[0], outcome.err


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_than_the_machine_has(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """Said before any of it is taken: the kernel would end the process without a word."""
    machine = ["env", f"LD_PRELOAD={LIBRARY}", "MUDMAN_FAULT_RAM=1000000"]
    outcome = mudman("run", tiny.config, f"output.dir={tmp_path}", wrapper=machine, ranks=ranks)
    assert outcome.status == 1
    assert f" within this machine's memory, 1.00 MB for {ranks} rank" in outcome.messages[0]


def test_more_than_the_control_group_may_have(tmp_path: Path) -> None:
    """Of its 201 MB, half of which CUDA's libraries take, the weights would take 256."""
    memory = Path("/sys/fs/cgroup/memory")
    if not os.access(memory / "memory.limit_in_bytes", os.W_OK):
        pytest.skip("no control groups (version 1) of memory to make here")
    model = random_llama(tmp_path / "model", width=64, mlp=64, layers=1, vocab=1_000_000)
    config = random_case(tmp_path, model, batch=2, context=8)
    group = memory / f"mudman-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(192 << 20))
        enter = ["sh", "-c", f"echo $$ >{group}/cgroup.procs && exec \"$@\"", "sh"]
        outcome = mudman("run", config, f"output.dir={tmp_path / 'run'}", wrapper=enter)
        assert outcome.status == 1, outcome.err
        assert " within the job's limit on memory, 201.33 MB for 1 rank" in outcome.messages[0]
    finally:
        group.rmdir()


# -- alone and hanging --------------------------------------------------------------------------------


def hanging(tiny: Case, run: Path, function: str, call: int, *overrides: str) -> Job:
    return Job(
        "run", tiny.config, f"output.dir={run}", *LONG, *overrides,
        wrapper=faulty(-1, function, call, 10**9, "hang"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("function", "call", "where", "seconds"),
    [("product", 3000, r"loop \d+", 1.5), ("save", 0, r"checkpoint after loop \d+", 9)],
)
def test_a_lonely_rank_that_hangs(
    tiny: Case, tmp_path: Path, function: str, call: int, where: str, seconds: float
) -> None:
    """In a product, or in the thread that writes a checkpoint: nobody waits for it but itself."""
    checkpoints = "checkpoint.every_loops=2" if function == "save" else SELDOM
    job = hanging(tiny, tmp_path / "run", function, call, "timeout=1", checkpoints)
    outcome = job.wait(30)
    assert outcome.status == 5, outcome.err
    said = rf"rank 0: {where}: nothing has gone on for {seconds} s: this process hangs, or 'timeout'"
    assert re.search(said, outcome.err), outcome.err


# -- twice --------------------------------------------------------------------------------------------


def loops_go_on(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.read_text().count('"unlearn"') > 2


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(tiny: Case, tmp_path: Path, first: int, second: int) -> None:
    """Where the first cannot be heeded; SIGUSR1, which Slurm sends before a SIGTERM, is none."""
    job = hanging(tiny, tmp_path / "run", "product", 3000, "timeout=0", SELDOM)
    job.wait_until(lambda: loops_go_on(tmp_path / "run"))
    time.sleep(0.5)
    for number in (signal.SIGUSR1, first):
        job.signal_ranks(number)
        time.sleep(0.5)
        assert job.running()
    job.signal_ranks(second)
    assert job.wait(5).status == -second


def test_a_signal_that_comes_two_ways_is_one(tiny: Case, tmp_path: Path) -> None:
    """timeout(1) signals its command and then its group."""
    run = tmp_path / "run"
    job = Job("run", tiny.config, f"output.dir={run}", *LONG, SELDOM)
    job.wait_until(lambda: loops_go_on(run))
    for _ in range(5):
        job.signal_ranks(signal.SIGTERM)
    assert job.wait().status == 3
