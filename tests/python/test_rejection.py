"""mudman-mpi run that ends with exit 4: over the retain-loss budget, or not finite."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from job_helpers import checkpoints_of, fail, lines_of, result_of, snapshot, state_of, succeed
from model_helpers import Case

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


DIVERGES = [
    "unlearn.target_modules=[v_proj,o_proj]",
    "unlearn.normalization=none",
    "unlearn.adv_lr=1e6",
    "checkpoint.every_loops=1",
]


@pytest.mark.parametrize("ranks", [1, 3])
def test_not_finite_rejects(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """The run ends at loop 1, which writes nothing: the checkpoint of loop 0's end stays as it was."""
    run, short = tmp_path / "run", tmp_path / "short"
    settings = [*DIVERGES, "evaluate.every_passes=1000"]
    message = tiny.rejected(run, *settings, ranks=ranks)
    assert re.search(r"loop 1: .*not finite", message)
    lines, result = lines_of(run, "unlearn"), result_of(run)
    assert len(lines) == 2
    assert all(lines[0][name] is not None for name in UNLEARN)
    assert any(lines[1][name] is None for name in UNLEARN), "not finite is null"
    assert result["status"] == "rejected" and re.search("loop 1: .*not finite", result["reason"])
    assert result["score"] is None and not (run / "model").exists()
    assert checkpoints_of(run) == [1]
    assert all(np.isfinite(values).all() for values in state_of(run).values())
    tame = [setting for setting in DIVERGES if "adv_lr" not in setting]
    tiny.run(short, *tame, "unlearn.loops=1", ranks=ranks)
    for name, values in state_of(run).items():
        if name.startswith("retain_acc"):  # the first retain step comes before the adversary's
            assert np.array_equal(values, state_of(short)[name])


def test_evaluation_that_is_not_finite_rejects(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    message = tiny.rejected(run, *DIVERGES, "evaluate.every_passes=5")
    assert "evaluation" in message and "loop 0" in message and "not finite" in message
    assert lines_of(run, "eval")[-1]["retain_loss"] is None
    assert result_of(run)["status"] == "rejected" and checkpoints_of(run) == []


def test_relearning_that_diverges_rejects(tiny: Case, tmp_path: Path) -> None:
    """The unlearned model was made before, and stays."""
    run = tmp_path / "run"
    message = tiny.rejected(run, "relearn.lr=5", "relearn.passes=60")
    last = lines_of(run, "relearn")[-1]
    assert last["loss"] is None and last["step"] < 29 and f"step {last['step']}" in message
    assert result_of(run)["status"] == "rejected" and result_of(run)["score"] is None
    assert (run / "model" / "model.safetensors").is_file() and checkpoints_of(run)[-1] == 8


def test_rejected_folder_is_used(tiny: Case, tmp_path: Path) -> None:
    """After a rejection the folder keeps its record: a second run into it is refused."""
    run = tmp_path / "run"
    tiny.rejected(run, *DIVERGES)
    before = snapshot(run)
    assert str(run) in fail(2, "run", tiny.config, f"output.dir={run}")
    assert snapshot(run) == before
