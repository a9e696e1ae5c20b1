"""mudman-mpi resume: after kill -9, after a signal, after the end, on other ranks, after damage."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from job_helpers import (
    Job,
    assert_close,
    assert_close_metrics,
    assert_close_state,
    assert_same_run,
    checkpoints_of,
    fail,
    lines_of,
    snapshot,
    state_of,
    succeed,
)
from model_helpers import Case, floats_of, write_safetensors

# A checkpoint costs ten times as much as a loop here, so a job that writes one every other loop is
# slow enough to be hit in the middle, and one that writes the last only is quick.
LOOPS = 400
LONG = [f"unlearn.loops={LOOPS}", "evaluate.every_passes=250", "unlearn.fork_every_n_loops=50"]
OFTEN, SELDOM = "checkpoint.every_loops=2", "checkpoint.every_loops=1000000"
# Small smooth steps, so that rounding stays rounding: signs and norms of noise would not agree.
SMOOTH = [
    "unlearn.use_masking=false", "unlearn.normalization=none", "unlearn.unlearning_rate=0.001",
    "unlearn.retaining_rate=0.01", "unlearn.adv_lr=0.001",
]  # fmt: skip


def undisturbed(case: Case, run: Path, *overrides: str, ranks: int = 1) -> Path:
    """A run to the end for comparison."""
    case.run(run, SELDOM, *overrides, ranks=ranks)
    return run


def start_and_wait(case: Case, run: Path, *overrides: str, ranks: int = 1) -> Job:
    """A job that has written a few checkpoints and goes on."""
    job = Job("run", case.config, f"output.dir={run}", OFTEN, *overrides, ranks=ranks)
    job.wait_until(lambda: max(checkpoints_of(run), default=0) >= 6)
    return job


def lines_of_part(run: Path) -> list[str]:
    """The lines of a run that goes on."""
    return [line for line in (run / "metrics.jsonl").read_text().split("\n") if '"unlearn"' in line]


def kill_early(job: Job, run: Path) -> int:
    """Kill the job; its newest checkpoint."""
    if job.running():
        job.kill()
    done = max(checkpoints_of(run))
    assert 6 <= done < LOOPS and '"result"' not in (run / "metrics.jsonl").read_text()
    return done


def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run at another place, as if moved."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut_back(run: Path, loops: int) -> None:
    """Remove later checkpoints and what the run wrote at its end, as if killed there."""
    for later in checkpoints_of(run):
        if later > loops:
            shutil.rmtree(run / "checkpoints" / str(later))
    shutil.rmtree(run / "model", ignore_errors=True)


# -- killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_killed_and_resumed_on_the_same_count(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """Bit for bit the run that nothing disturbed, metrics line by line."""
    run = tmp_path / "run"
    done = kill_early(start_and_wait(tiny, run, *LONG, ranks=ranks), run)
    assert not (run / "model").exists()
    outcome = succeed("resume", run, SELDOM, ranks=ranks)
    assert f"{done} of {LOOPS}" in outcome.err
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *LONG, ranks=ranks), run)


@pytest.mark.parametrize(("ranks", "later"), [(3, 1), (1, 4), (2, 3)])
def test_killed_and_resumed_on_another_count(
    tiny: Case, tmp_path: Path, ranks: int, later: int
) -> None:
    run = tmp_path / "run"
    kill_early(start_and_wait(tiny, run, *LONG, *SMOOTH, ranks=ranks), run)
    succeed("resume", run, SELDOM, ranks=later)
    whole = undisturbed(tiny, tmp_path / "whole", *LONG, *SMOOTH)
    assert_close_state(whole, run)
    assert_close_metrics(whole, run)


@pytest.mark.parametrize("later", [1, 2, 4])
def test_other_count_is_still_the_oracle(
    golden: Callable[[str], Case], tmp_path: Path, later: int
) -> None:
    """Four loops on three ranks, four on others, masked: the traces stay clear of the mask's edge."""
    case, run = golden("neox-parallel"), tmp_path / "run"
    case.run(run, "checkpoint.keep=9", "checkpoint.every_loops=4", ranks=3)
    cut_back(run, 4)
    succeed("resume", run, ranks=later)
    trace = case.trace("listing")
    for name, values in state_of(run).items():
        assert_close(name, values, trace[name], 1e-4 if name.startswith("retain_acc") else 1e-5)
    losses = [line["retain_loss"] for line in lines_of(run, "unlearn")]
    assert losses == pytest.approx(trace["retain_loss"], rel=1e-5)


@pytest.mark.parametrize("variant", ["lora_adversary", "lora_base"])
@pytest.mark.parametrize("later", [1, 4])
def test_adapters_on_another_count(tiny: Case, tmp_path: Path, later: int, variant: str) -> None:
    """Three loops on three ranks, of which one has few rows of A or none; then as the trace has it."""
    run = tmp_path / "run"
    tiny.run(run, *tiny.overrides(variant), "checkpoint.keep=9", ranks=3)
    cut_back(run, 3)
    succeed("resume", run, ranks=later)
    trace = tiny.trace(variant)
    for name, values in state_of(run).items():
        assert_close(name, values, trace[name], 1e-4 if name.startswith("retain_acc") else 1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_one_rank_killed(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """The others do not wait for it for ever; the run can be resumed."""
    run = tmp_path / "run"
    job = start_and_wait(tiny, run, *LONG, ranks=ranks)
    job.signal_ranks(signal.SIGKILL, 1)
    assert job.wait().status not in (0, 2, 3, 4)
    kill_early(job, run)
    succeed("resume", run, SELDOM, ranks=ranks)
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *LONG, ranks=ranks), run)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_before_its_first_checkpoint(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """It starts again, from the same command as any other."""
    run = tmp_path / "run"
    job = Job("run", tiny.config, f"output.dir={run}", SELDOM, *LONG, ranks=ranks)
    job.wait_until(
        lambda: (run / "metrics.jsonl").is_file() and len(lines_of_part(run)) > 5
    )
    job.kill()
    assert checkpoints_of(run) == []
    message = fail(2, "run", tiny.config, f"output.dir={run}")
    assert f"use 'mudman-mpi resume {run}', which also starts one without a checkpoint" in message
    assert "no checkpoint yet: starting again" in succeed("resume", run, ranks=ranks).err
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *LONG, ranks=ranks), run)


def test_killed_twice(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = kill_early(start_and_wait(tiny, run, *LONG, ranks=2), run)
    again = Job("resume", run, ranks=2)
    again.wait_until(lambda: max(checkpoints_of(run)) >= first + 6)
    kill_early(again, run)
    succeed("resume", run, SELDOM, ranks=2)
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *LONG, ranks=2), run)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.state_dtype=bfloat16"],
        ["model.dtype=bfloat16", "device=cpu"],
        ["unlearn.train_adversary=false"],
        ["unlearn.forget_momentum=0.9", "unlearn.adv_update=0.1"],
        ["unlearn.adv_lora_rank=3", "unlearn.adv_lora_count=2", "unlearn.adv_decay=0.9"],
        ["unlearn.lora_rank=3", "unlearn.train_adversary=false", "relearn.passes=20"],
        ["unlearn.unlearning_loss_fn=npo", "unlearn.unlearning_rate=0.01"],
        [
            "unlearn.unlearning_loss_fn=circuit_breaker", "unlearn.rep_eng_retain_lr=0.5",
            "unlearn.unlearning_rate=0.001",
        ],
    ],
)  # fmt: skip
def test_killed_in_other_modes(tiny: Case, tmp_path: Path, overrides: list[str]) -> None:
    run = tmp_path / "run"
    kill_early(start_and_wait(tiny, run, *LONG, *overrides), run)
    succeed("resume", run, SELDOM)
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *LONG, *overrides), run)


# -- signalled ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ranks", "whom"),
    [
        (signal.SIGTERM, 1, "every rank"),
        (signal.SIGTERM, 3, "every rank"),
        (signal.SIGINT, 1, "every rank"),
        (signal.SIGUSR1, 3, "one rank"),
        (signal.SIGUSR1, 2, "mpirun"),
    ],
)
def test_signal_stops_after_a_checkpoint(
    tiny: Case, tmp_path: Path, number: int, ranks: int, whom: str
) -> None:
    """Exit 3, at once, also if only one rank hears it; then as if nothing had happened."""
    run = tmp_path / "run"
    job = start_and_wait(tiny, run, *LONG, ranks=ranks)
    if whom == "mpirun":
        job.signal_launcher(number)
    else:
        job.signal_ranks(number, 1 if whom == "one rank" else ranks)
    outcome = job.wait()
    assert outcome.status == 3, outcome.err
    (message,) = outcome.messages
    done = max(checkpoints_of(run))
    assert f"resume {run}" in message and f"loop {done} of {LOOPS}" in message
    assert len(lines_of(run, "unlearn")) == done < LOOPS and not lines_of(run, "result")
    succeed("inspect", run)
    assert (run / "stopped").is_file() and not (run / "owner").exists()
    succeed("resume", run, SELDOM, ranks=ranks)
    assert not (run / "stopped").exists()
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *LONG, ranks=ranks), run)


@pytest.mark.parametrize(("ranks", "loops"), [(1, 8), (2, 8), (1, 0)])
def test_signal_while_relearning(tiny: Case, tmp_path: Path, ranks: int, loops: int) -> None:
    """The checkpoint after the last loop is there: exit 3, and a resume repeats the relearning."""
    run, long = tmp_path / "run", ["relearn.passes=40000", "evaluate.every_passes=4000"]
    length = f"unlearn.loops={loops}"
    job = Job("run", tiny.config, f"output.dir={run}", length, *long, ranks=ranks)
    metrics = run / "metrics.jsonl"
    job.wait_until(lambda: metrics.is_file() and '"relearn"' in metrics.read_text())
    job.signal_ranks(signal.SIGTERM)
    outcome = job.wait()
    assert outcome.status == 3, f"exit {outcome.status}: {outcome.err}"
    assert not lines_of(run, "result") and checkpoints_of(run)[-1:] == [loops]
    succeed("resume", run, "relearn.passes=10", "evaluate.every_passes=10", ranks=ranks)
    short = undisturbed(tiny, tmp_path / "short", length, ranks=ranks)
    assert lines_of(run, "relearn") == lines_of(short, "relearn")


# -- resumed at the end -------------------------------------------------------------------------------


def test_resume_after_the_end_repeats_relearning(finished: Path, tmp_path: Path) -> None:
    run = finished_copy(finished, tmp_path)
    for _ in range(2):
        succeed("resume", run)
        assert_same_run(finished, run)


def test_resume_with_another_attack(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """relearn.* may change: the unlearning stays, the attack is as in a run that had it from the start."""
    run, attack = finished_copy(finished, tmp_path), ["relearn.lr=0.3", "relearn.passes=16"]
    succeed("resume", run, *attack)
    assert_same_run(undisturbed(tiny, tmp_path / "whole", *attack), run)
    assert "lr: 0.3\n" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("more", ["unlearn.loops=8", "unlearn.passes=40"])
def test_resume_with_more_loops(tiny: Case, finished: Path, tmp_path: Path, more: str) -> None:
    """Six loops, evaluated at their end anyway, then two more."""
    run = tmp_path / "run"
    tiny.run(run, "unlearn.loops=6", ranks=1)
    assert checkpoints_of(run) == [3, 6]
    succeed("resume", run, more)
    assert_same_run(finished, run)


def test_resume_with_fewer_loops(finished: Path, tmp_path: Path) -> None:
    run = finished_copy(finished, tmp_path)
    before = snapshot(run)
    message = fail(2, "resume", run, "unlearn.loops=5")
    assert re.search(r": has 8 loops, more than the 5 asked for$", message)
    assert snapshot(run) == before


@pytest.mark.parametrize("override", ["checkpoint.keep=1", "device=cpu", "evaluate.batches=2"])
def test_overrides_that_leave_the_loops_valid(
    finished: Path, tmp_path: Path, override: str
) -> None:
    run = finished_copy(finished, tmp_path)
    cut_back(run, 6)
    succeed("resume", run, override)
    assert len(lines_of(run, "unlearn")) == 8 and len(lines_of(run, "result")) == 1


FORBIDDEN = [
    "unlearn.adv_lr=1",
    "unlearn.graph=fresh",
    "unlearn.retain_loss_budget=1",
    "data.batch_size=2",
    "output.dir=/tmp/o",
    "seed=7",
    "unlearn.adv_rl=1",
]


@pytest.mark.parametrize(
    ("override", "ranks"), [*((override, 1) for override in FORBIDDEN), (FORBIDDEN[0], 3)]
)
def test_forbidden_overrides(finished: Path, tmp_path: Path, override: str, ranks: int) -> None:
    run = finished_copy(finished, tmp_path)
    before = snapshot(run)
    assert override.partition("=")[0] in fail(2, "resume", run, override, ranks=ranks)
    assert snapshot(run) == before


def test_moved_folder(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """Checkpoint, metrics and model go where the folder is now, wherever resume is called from."""
    run = tmp_path / "first"
    tiny.run(run)
    cut_back(run, 6)
    moved = run.rename(tmp_path / "second")
    succeed("resume", "second", cwd=tmp_path)
    assert not run.exists()
    assert_same_run(finished, moved)
    assert str(moved) in (moved / "config.yaml").read_text()


# -- damaged ------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_config(path: Path) -> None:
    """A rate in the stored configuration: HDF5 has nothing against it."""
    content = path.read_bytes()
    assert content.count(b"  adv_lr: 0.5\n") == 1
    path.write_bytes(content.replace(b"  adv_lr: 0.5\n", b"  adv_lr: 0.6\n"))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "flipped-part": ("part-00001.h5", flip),
    "flipped-whole": ("checkpoint.h5", flip),
    "changed-whole": ("checkpoint.h5", change_config),
    "short-part": ("part-00002.h5", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "short-whole": ("checkpoint.h5", lambda path: path.write_bytes(path.read_bytes()[:1000])),
    "empty-part": ("part-00000.h5", lambda path: path.write_bytes(b"")),
    "no-part": ("part-00001.h5", Path.unlink),
    "no-whole": ("checkpoint.h5", Path.unlink),
}


@pytest.fixture(scope="module")
def three(tiny: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three ranks. To be read only."""
    run = tmp_path_factory.mktemp("three") / "run"
    tiny.run(run, ranks=3)
    return run


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_skipped(three: Path, tmp_path: Path, damage: str) -> None:
    run, (name, harm) = finished_copy(three, tmp_path), DAMAGES[damage]
    succeed("inspect", run, ranks=1)
    harm(run / "checkpoints" / "8" / name)
    assert name in fail(2, "inspect", run / "checkpoints" / "8")
    fail(2, "inspect", run)
    outcome = succeed("resume", run, ranks=3)
    (skipped,) = [line for line in outcome.err.splitlines() if "skipping" in line]
    assert "checkpoints/8" in skipped and name in skipped
    assert_same_run(three, run)
    succeed("inspect", run)


def test_rubbish_of_a_crash_is_ignored(finished: Path, tmp_path: Path) -> None:
    run = finished_copy(finished, tmp_path)
    cut_back(run, 6)
    shutil.copytree(run / "checkpoints" / "6", run / "checkpoints" / ".writing-7")
    (run / "checkpoints" / ".writing-7" / "checkpoint.h5").unlink()
    succeed("resume", run)
    assert_same_run(finished, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["6", "8"]


def no_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def all_damaged(run: Path) -> None:
    for loops in checkpoints_of(run):
        flip(run / "checkpoints" / str(loops) / "checkpoint.h5")


def short_metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (no_checkpoints, "no valid checkpoint"),
        (all_damaged, "no valid checkpoint"),
        (short_metrics, "metrics.jsonl"),
        (shutil.rmtree, "no valid checkpoint"),
    ],
)
def test_nothing_to_resume(
    finished: Path, tmp_path: Path, harm: Callable, named: str, ranks: int
) -> None:
    run = finished_copy(finished, tmp_path)
    harm(run)
    before = snapshot(tmp_path)
    message = fail(2, "resume", run, ranks=ranks)
    assert named in message and str(run) in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoint_of_another_model(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """A frozen weight changed since: the checkpoint has only W, and would go on with a mixture."""
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny.model, model)
    tiny.run(run, f"model.path={model}", ranks=ranks)
    tensors = floats_of(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    write_safetensors(model / "model.safetensors", tensors)
    before = snapshot(tmp_path)
    message = fail(2, "resume", run, ranks=ranks)
    assert str(run / "checkpoints" / "8") in message and str(model) in message
    assert snapshot(tmp_path) == before
