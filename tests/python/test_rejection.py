"""mudman-mpi run that ends with exit 4: over the retain-loss budget, or not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import (
    assert_same_state,
    checkpoints_of,
    fail,
    lines_of,
    result_of,
    snapshot,
    state_of,
    succeed,
)
from model_helpers import (
    BATCH,
    LEARNED,
    OVERFLOWS,
    Case,
    changed_case,
    floats_of,
    sentences,
    with_overflow,
    write_tokens,
)

UNLEARN = ("retain_loss", "adversary_loss", "unlearning_loss", "grad_norm", "mask_fraction")


def first_excess(run: Path) -> tuple[int, float]:
    """A loop after which the retain loss is higher than ever, and a budget that it alone exceeds."""
    start, *after = [
        line["retain_loss"] for line in lines_of(run, "eval") if line["at"] != "relearn"
    ]
    for loop in range(2, len(after)):
        before = max(start, *after[:loop])
        if after[loop] > before:
            return loop, (before + after[loop]) / 2 - start
    raise AssertionError("the retain loss never rises")


@pytest.mark.parametrize("ranks", [1, 3])
def test_budget_rejects(tiny: Case, tmp_path: Path, ranks: int) -> None:
    free, run = tmp_path / "free", tmp_path / "run"
    settings = ["unlearn.unlearning_rate=2", "evaluate.every_passes=5", "checkpoint.every_loops=1"]
    tiny.run(free, *settings, "checkpoint.keep=9", ranks=ranks)
    loop, budget = first_excess(free)
    message = tiny.rejected(run, *settings, f"unlearn.retain_loss_budget={budget}",
        ranks=ranks,
    )  # fmt: skip
    result = result_of(run)
    assert result["status"] == "rejected" and f"loop {loop} " in result["reason"]
    assert result["reason"] in message and "retain loss" in message and "budget" in message
    assert result["score"] is None and result["forget_loss_relearn"] is None
    evals = lines_of(run, "eval")
    assert evals == lines_of(free, "eval")[: loop + 2]
    assert result["retain_loss_unlearn"] == evals[-1]["retain_loss"]
    assert len(lines_of(run, "unlearn")) == loop + 1 and not lines_of(run, "relearn")
    assert not (run / "model").exists()
    assert checkpoints_of(run) == [loop - 1, loop], "of the loops before"
    for loops in (loop - 1, loop):
        succeed("inspect", run / "checkpoints" / str(loops))
        for name, values in state_of(run, loops).items():
            assert np.array_equal(values, state_of(free, loops)[name])
    before = lines_of(run, "unlearn")
    assert result["reason"] in fail(4, "resume", run, ranks=ranks), "resumed, it ends the same way"
    assert lines_of(run, "unlearn") == before and result_of(run)["reason"] == result["reason"]


def of_batch_1(case: Case, token_set: str, folder: Path) -> str:
    """The override that makes this token file overflow in loop 1."""
    with h5py.File(case.data / f"{token_set}.h5") as file:
        rows = with_overflow(file["tokens"][:], 1)
    return f"data.{token_set}={write_tokens(folder / 'overflow.h5', rows, 47)}"


@pytest.mark.parametrize(
    ("token_set", "ranks", "expected"),
    [
        ("retain", 1, "the retain loss is not finite"),
        ("retain", 3, "the retain loss is not finite"),
        ("forget", 1, "the adversary's loss is not finite"),
    ],
)
def test_not_finite_rejects(
    overflowing: Case, tmp_path: Path, token_set: str, ranks: int, expected: str
) -> None:
    """The run ends at loop 1, which writes nothing: the checkpoint of loop 0's end stays as it was."""
    run, short = tmp_path / "run", tmp_path / "short"
    settings = ["checkpoint.every_loops=1", "evaluate.every_passes=1000"]
    bad = of_batch_1(overflowing, token_set, tmp_path)
    message = overflowing.rejected(run, *settings, bad, ranks=ranks)
    assert f"loop 1: {expected}" in message
    lines, result = lines_of(run, "unlearn"), result_of(run)
    assert len(lines) == 2
    assert all(lines[0][name] is not None for name in UNLEARN)
    assert any(lines[1][name] is None for name in UNLEARN), "not finite is null"
    assert result["status"] == "rejected" and result["reason"] == f"loop 1: {expected}"
    assert result["score"] is None and not (run / "model").exists()
    assert checkpoints_of(run) == [1]
    overflowing.run(short, "unlearn.loops=1", "relearn.passes=0", ranks=ranks)
    assert_same_state(run, short)


def test_model_that_learns_nothing_rejects(golden: Callable[[str], Case], tmp_path: Path) -> None:
    """A gradient of zeros, which is finite: nothing comes through a head of zeros."""
    case = changed_case(golden("llama3-untied"), tmp_path, {"lm_head.weight": (..., 0)})
    run = tmp_path / "run"
    message = case.rejected(run, "unlearn.normalization=none")
    assert "loop 0: the retain gradient is zero everywhere, though the retain loss is not" in message
    assert lines_of(run, "unlearn")[0]["retain_loss"] == pytest.approx(np.log(47))


def test_adversary_that_learns_nothing_rejects(
    golden: Callable[[str], Case], tmp_path: Path
) -> None:
    """Nothing comes from a token whose embedding is zero; the retain batch is of others."""
    embedding = {"model.embed_tokens.weight": (OVERFLOWS, 0)}
    case = changed_case(golden("llama3-untied"), tmp_path, embedding)
    dead = write_tokens(tmp_path / "dead.h5", np.full((BATCH, 11), OVERFLOWS), 47)
    message = case.rejected(tmp_path / "run", "unlearn.normalization=none", f"data.forget={dead}")
    assert "loop 0: the adversary's gradient is zero everywhere, though its loss is not" in message


def test_evaluation_that_is_not_finite_rejects(tiny: Case, tmp_path: Path) -> None:
    """A norm's sum of squares is not far from overflowing, and does after one loop."""
    run, down = tmp_path / "run", "model.layers.1.mlp.down_proj.weight"
    large = 2.0**50 * floats_of(tiny.model / "model.safetensors")[down]
    case = changed_case(tiny, tmp_path, {down: (..., large)})
    message = case.rejected(run, "unlearn.unlearning_rate=1e9", "evaluate.every_passes=5")
    assert "evaluation" in message and "loop 0" in message and "not finite" in message
    start, after = lines_of(run, "eval")
    assert start["retain_loss"] is not None and after["retain_loss"] is None
    assert result_of(run)["status"] == "rejected" and checkpoints_of(run) == []


def test_relearning_that_diverges_rejects(overflowing: Case, tmp_path: Path) -> None:
    """The unlearned model was made before, and stays."""
    run = tmp_path / "run"
    rows = with_overflow(sentences(*LEARNED), 7)
    message = overflowing.rejected(run, *overflowing.attacked_with(tmp_path, rows), "relearn.passes=60")
    last = lines_of(run, "relearn")[-1]
    assert last["loss"] is None and last["step"] == 7
    assert "relearning diverged: the loss is not finite at step 7" in message
    assert result_of(run)["status"] == "rejected" and result_of(run)["score"] is None
    assert (run / "model" / "model.safetensors").is_file() and checkpoints_of(run)[-1] == 8


def test_rejected_folder_is_used(tiny: Case, tmp_path: Path) -> None:
    """After a rejection the folder keeps its record: a second run into it is refused."""
    run = tmp_path / "run"
    tiny.rejected(run, "unlearn.unlearning_rate=30", "unlearn.retain_loss_budget=0")
    before = snapshot(run)
    assert str(run) in fail(2, "run", tiny.config, f"output.dir={run}")
    assert snapshot(run) == before
