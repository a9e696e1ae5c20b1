"""`device: cuda`: the whole program on a GPU, by the binary that MUDMAN_BINARY_CUDA names.

That is the real one where there is a GPU, else mudman-mpi-shim, which runs the same kernels on the
host. MUDMAN_BINARY, as ever, may be a build without CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from job_helpers import (
    assert_close,
    assert_close_metrics,
    assert_close_state,
    assert_same_run,
    checkpoints_of,
    fail,
    lines_of,
    metrics_of,
    result_of,
    state_of,
    succeed,
)
from model_helpers import Case, floats_of
from test_shard import case_in

CUDA = Path(os.environ.get("MUDMAN_BINARY_CUDA") or "absent").resolve()


def usable() -> bool:
    """Whether the binary has a device: the real one needs a GPU."""
    if not CUDA.is_file():
        return False
    if "shim" in CUDA.name:
        return True
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


on_device = pytest.mark.skipif(not usable(), reason="no MUDMAN_BINARY_CUDA, or no GPU for it")
FLOAT32, BFLOAT16 = "model.dtype=float32", "model.dtype=bfloat16"
LIMIT = 300.0


def device_run(case: Case, folder: Path, dtype: str = FLOAT32, ranks: int = 1) -> Path:
    """A run on the device that keeps its checkpoints."""
    arguments = ["device=cuda", "transport=staged", dtype, "checkpoint.keep=8"]
    case.run(folder, *arguments, ranks=ranks, binary=CUDA, limit=LIMIT)
    return folder


def cut_copy(run: Path, to: Path, loops: int) -> Path:
    """A copy of a run as if it had been killed after the checkpoint of `loops`."""
    shutil.copytree(run, to)
    for later in checkpoints_of(to):
        if later > loops:
            shutil.rmtree(to / "checkpoints" / str(later))
    shutil.rmtree(to / "model")
    assert checkpoints_of(to)[-1] == loops
    return to


@pytest.fixture(scope="module")
def on_gpu(tiny: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny case on the device, on one rank, undisturbed. To be read only."""
    return device_run(tiny, tmp_path_factory.mktemp("gpu") / "run")


# -- the run ------------------------------------------------------------------------------------------


@on_device
def test_run_is_the_trace(tiny: Case, finished: Path, on_gpu: Path) -> None:
    """Unlearning, export and relearning: the float64 traces', and the CPU's, but for rounding."""
    trace = tiny.trace("listing")
    for name, values in state_of(on_gpu).items():
        assert_close(name, values, trace[name], 1e-4)
    assert_close_metrics(finished, on_gpu, 1e-4)
    exported = floats_of(finished / "model" / "model.safetensors")
    ours = floats_of(on_gpu / "model" / "model.safetensors")
    assert ours.keys() == exported.keys()
    for name, values in ours.items():
        assert_close(name, values, exported[name].astype(float), 1e-4)
    assert result_of(on_gpu)["peak_bytes"] > 0


@on_device
def test_same_run_twice(tiny: Case, on_gpu: Path, tmp_path: Path) -> None:
    assert_same_run(on_gpu, device_run(tiny, tmp_path / "again"))


@on_device
def test_two_ranks_share_the_device(tiny: Case, on_gpu: Path, tmp_path: Path) -> None:
    two = device_run(tiny, tmp_path / "two", ranks=2)
    assert_close_state(on_gpu, two, 1e-4)
    assert_close_metrics(on_gpu, two, 1e-4)


@on_device
def test_auto_takes_the_device_and_bfloat16(tiny: Case, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = tiny.run(run, binary=CUDA, limit=LIMIT)
    assert "arithmetic bfloat16" in outcome.out + outcome.err
    ours, others = lines_of(run, "unlearn"), lines_of(finished, "unlearn")
    for one, other in zip(ours, others, strict=True):
        assert one["retain_loss"] == pytest.approx(other["retain_loss"], rel=0.02)
        assert one["retain_loss"] != other["retain_loss"]


# -- resumed ------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_resumed_bit_for_bit(tiny: Case, tmp_path: Path, dtype: str, ranks: int) -> None:
    whole = device_run(tiny, tmp_path / "whole", dtype, ranks=ranks)
    cut = cut_copy(whole, tmp_path / "cut", 3)
    succeed("resume", cut, ranks=ranks, binary=CUDA, limit=LIMIT)
    assert_same_run(whole, cut)


@on_device
@pytest.mark.parametrize("to_device", [True, False])
def test_resumed_on_the_other_device(
    tiny: Case, on_gpu: Path, finished: Path, tmp_path: Path, to_device: bool
) -> None:
    """A checkpoint of either device goes on as the other's, to rounding."""
    begun = on_gpu
    if to_device:
        begun = tmp_path / "cpu"
        tiny.run(begun, "device=cpu", FLOAT32, "checkpoint.keep=8")
    cut = cut_copy(begun, tmp_path / "cut", 3)
    device = "device=cuda" if to_device else "device=cpu"
    succeed("resume", cut, device, binary=CUDA, limit=LIMIT)
    assert_close_state(finished, cut, 1e-4)
    assert_close_metrics(finished, cut, 1e-4)


@on_device
def test_bfloat16_goes_on_without_the_device(tiny: Case, tmp_path: Path) -> None:
    """It stays bfloat16, of the CPU's own rounding."""
    whole = device_run(tiny, tmp_path / "whole", BFLOAT16)
    cut = cut_copy(whole, tmp_path / "cut", 3)
    succeed("resume", cut, "device=cpu", binary=CUDA, limit=LIMIT)
    assert_close_metrics(whole, cut, 0.05)


# -- on several ranks, each with a GPU of its own, where there are as many ------------------------------

EXACT = {
    "bfloat16": ((2, 3, 8), BFLOAT16, "unlearn.forget_momentum=0.5"),
    "adapters": ((2,), FLOAT32, "unlearn.adv_lora_rank=2", "unlearn.fork_every_n_loops=12"),
    "sharded": ((2,), FLOAT32, "model.shard=full", "unlearn.graph=fresh"),
}


@on_device
@pytest.mark.parametrize("variant", EXACT)
def test_exact(tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """reduction: exact: the same bits on any number of ranks, resumed on another one, or staged."""
    monkeypatch.setenv("MM_SHIM_GPU", "rank")
    several, *overrides = EXACT[variant]
    few = ["device=cuda", "reduction=exact", "data.micro_batch=1", "checkpoint.keep=8", *overrides]
    for ranks in (1, *several):
        outcome = tiny.run(tmp_path / str(ranks), *few, ranks=ranks, binary=CUDA, limit=LIMIT)
        assert ranks == 1 or "shim" not in CUDA.name or "NCCL 2" in outcome.err
        assert_same_run(tmp_path / "1", tmp_path / str(ranks))
    cut = cut_copy(tmp_path / "2", tmp_path / "cut", 3)
    succeed("resume", cut, "transport=staged", ranks=3, binary=CUDA, limit=LIMIT)
    assert_same_run(tmp_path / "1", cut)


@on_device
def test_machines_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.shard: node between GPUs, its loops recorded, with questions and uneven shares."""
    monkeypatch.setenv("MM_SHIM_GPU", "rank")
    monkeypatch.setenv("MUDMAN_NEAR_RANKS", "2")
    case = case_in(tmp_path)
    for shard in ("none", "node"):
        run = f"output.dir={tmp_path / shard}"
        more = {"ranks": 3, "binary": CUDA, "limit": LIMIT}
        succeed("run", case, run, "device=cuda", f"model.shard={shard}", **more)
    assert_same_run(tmp_path / "none", tmp_path / "node")


# -- without a run ------------------------------------------------------------------------------------


@on_device
def test_eval(tiny: Case) -> None:
    cpu = succeed("eval", tiny.config, "device=cpu").out
    gpu = succeed("eval", tiny.config, "device=cuda", FLOAT32, binary=CUDA).out
    for one, other in zip(cpu.splitlines(), gpu.splitlines(), strict=True):
        if one.startswith("hash "):  # of what was read, which is the same
            assert one == other
            continue
        assert one.rpartition(" ")[0] == other.rpartition(" ")[0]
        assert float(one.split()[-1]) == pytest.approx(float(other.split()[-1]), rel=1e-5)


def test_plan_needs_no_device(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = succeed("plan", tiny.config, "device=cuda").out
    assert "arithmetic: bfloat16 on a GPU a rank" in out and "of GPU memory a rank" in out
    out = succeed("plan", tiny.config, "device=cpu").out
    assert "arithmetic: float32 on the CPU" in out and "GPU memory" not in out


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_device(
    tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Built without CUDA, or on a machine without a GPU: a message, and nothing is written."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = tmp_path / "run"
    message = fail(2, "run", tiny.config, f"output.dir={run}", "device=cuda", ranks=ranks)
    assert "device: cuda on rank 0: " in message and "GPU" in message
    assert not run.exists()
