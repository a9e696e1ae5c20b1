"""evaluate.kl: the divergence from the model as it was, its budget; and the answers' probability."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import (
    assert_same_run,
    checkpoints_of,
    fail,
    lines_of,
    result_of,
    succeed,
)
from model_helpers import TOKEN_SETS, Case, floats_of, write_tokens
from search import Evaluations
from search_config import Limit
from test_trials import Server

MEASURES = ("kl", "forget_answer_probability", "forget_loss")


@pytest.fixture(scope="module")
def llama(golden: Callable[[str], Case]) -> Case:
    return golden("llama-gqa-tied")


def measured(case: Case, *more: str) -> list[str]:
    """Arguments: the divergence on the ten rows of retain_validation."""
    return [f"evaluate.kl.file={case.data / 'retain_validation.h5'}", "evaluate.kl.rows=10", *more]


def oracle(case: Case, name: str) -> dict[str, np.ndarray]:
    with h5py.File(case.model / "divergence.h5") as file:
        return {measure: file[name][measure][:] for measure in MEASURES}


def found(run: Path, measure: str) -> list[float]:
    """By evaluation, of the start and of unlearning."""
    return [line[measure] for line in lines_of(run, "eval") if line["at"] in ("start", "unlearn")]


def cut_rows(case: Case, folder: Path) -> list[str]:
    """The token files of rows.h5: rows of different lengths."""
    arguments = []
    with h5py.File(case.model / "rows.h5") as file:
        for name in TOKEN_SETS:
            path = write_tokens(folder / f"{name}.h5", file[name][:], 53)
            with h5py.File(path, "a") as out:
                out["lengths"] = file[f"{name}_lengths"][:]
                out["answer_from"] = file[f"{name}_answers"][:]
            arguments.append(f"data.{name}={path}")
        arguments += str(file["listing"].attrs["overrides"]).splitlines()
    return [*arguments, f"evaluate.kl.file={folder / 'retain_validation.h5'}", "evaluate.kl.rows=10"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("more", [[], ["model.shard=full", "data.micro_batch=1"]])
@pytest.mark.parametrize("name", ["traces", "rows"])
def test_measures_are_the_oracle(
    llama: Case, tmp_path: Path, name: str, more: list[str], ranks: int
) -> None:
    arguments = cut_rows(llama, tmp_path) if name == "rows" else measured(llama)
    llama.run(tmp_path / "run", *arguments, "relearn.passes=0", *more, ranks=ranks)
    for measure, expected in oracle(llama, name).items():
        assert found(tmp_path / "run", measure) == pytest.approx(expected, rel=2e-5, abs=1e-7)
    assert found(tmp_path / "run", "kl")[0] == 0
    last = lines_of(tmp_path / "run", "eval")[-1]
    result = result_of(tmp_path / "run")
    assert result["kl_unlearn"] == last["kl"] and result["kl_relearn"] is None
    key = "forget_answer_probability"
    assert result[f"{key}_unlearn"] == last[key] and result[f"{key}_start"] == found(
        tmp_path / "run", key
    )[0]


def test_measured_without_a_budget_changes_nothing_else(llama: Case, tmp_path: Path) -> None:
    llama.run(tmp_path / "plain")
    llama.run(tmp_path / "measured", *measured(llama))
    assert all("kl" not in line for line in lines_of(tmp_path / "plain", "eval"))
    assert len(lines_of(tmp_path / "measured", "eval")) == len(lines_of(tmp_path / "plain", "eval"))
    assert all(line["kl"] >= 0 for line in lines_of(tmp_path / "measured", "eval"))
    for left, right in zip(lines_of(tmp_path / "plain", "relearn"), lines_of(tmp_path / "measured", "relearn")):
        assert left == right


# -- the budget -------------------------------------------------------------------------------------

# Between what the oracle finds after 4 and after 6 loops; 4 are 20 passes.
KEPT_LOOPS, BROKEN_LOOPS = 4, 6
LORA = ["unlearn.train_adversary=false", "unlearn.lora_rank=3", "unlearn.normalization=global_pre_mask"]


def budget_of(case: Case) -> str:
    kl = oracle(case, "traces")["kl"]
    assert kl[2] < kl[3]
    return f"evaluate.kl.budget={(kl[2] + kl[3]) / 2}"


def assert_kept(run: Path, other: Path) -> None:
    """The run is another one's, of fewer loops: model, attack, and the evaluation before it."""
    left, right = (floats_of(path / "model" / "model.safetensors") for path in (run, other))
    assert all(np.array_equal(left[name], values) for name, values in right.items())
    assert lines_of(run, "relearn") == lines_of(other, "relearn")
    for key in ("forget_loss_unlearn", "retain_loss_unlearn", "kl_unlearn", "score"):
        assert result_of(run)[key] == result_of(other)[key]


@pytest.mark.parametrize(
    ("more", "ranks"),
    [([], 1), (["model.shard=full"], 3), (["model.state_dtype=bfloat16"], 2)],
)
def test_the_last_state_within_the_budget_is_kept(
    llama: Case, tmp_path: Path, more: list[str], ranks: int
) -> None:
    budget = budget_of(llama)
    llama.run(tmp_path / "run", *measured(llama, budget, *more), ranks=ranks)
    llama.run(tmp_path / "short", *measured(llama, f"unlearn.loops={KEPT_LOOPS}", *more), ranks=ranks)
    assert_kept(tmp_path / "run", tmp_path / "short")
    lines = [(line["at"], line["passes"]) for line in lines_of(tmp_path / "run", "eval")]
    assert lines[:5] == [("start", 0), ("unlearn", 10), ("unlearn", 20), ("unlearn", 30), ("kept", 20)]
    assert len(lines_of(tmp_path / "run", "unlearn")) == BROKEN_LOOPS
    assert result_of(tmp_path / "run")["kept_passes"] == 20
    assert result_of(tmp_path / "run")["status"] == "done"
    assert checkpoints_of(tmp_path / "run")[-1] == BROKEN_LOOPS
    assert "kept_passes" not in result_of(tmp_path / "short")


def test_nothing_within_the_budget_keeps_the_start(llama: Case, tmp_path: Path) -> None:
    llama.run(tmp_path / "run", *measured(llama, "evaluate.kl.budget=0"))
    result = result_of(tmp_path / "run")
    assert result["kept_passes"] == 0 and result["kl_unlearn"] == 0
    before, after = (floats_of(at / "model.safetensors") for at in (llama.model, tmp_path / "run/model"))
    assert all(np.array_equal(after[name], values) for name, values in before.items())


def test_adapters_are_kept_too(llama: Case, tmp_path: Path) -> None:
    """Of a base of adapters: the attack trains them on."""
    llama.run(tmp_path / "all", *measured(llama, *LORA))
    kl = found(tmp_path / "all", "kl")
    assert kl[2] < kl[3]
    budget = f"evaluate.kl.budget={(kl[2] + kl[3]) / 2}"
    llama.run(tmp_path / "run", *measured(llama, budget, *LORA), ranks=2)
    llama.run(tmp_path / "short", *measured(llama, "unlearn.loops=5", *LORA), ranks=2)
    assert result_of(tmp_path / "run")["kept_passes"] == 20 == 5 * 4
    assert_kept(tmp_path / "run", tmp_path / "short")


@pytest.mark.parametrize("loops", [3, 5, 6])
def test_a_resume_keeps_the_same(llama: Case, tmp_path: Path, loops: int) -> None:
    """Before the last good evaluation, between it and the bad one, and after that; exact, on other
    ranks."""
    arguments = measured(llama, budget_of(llama), "reduction=exact", "checkpoint.every_loops=1")
    arguments += ["checkpoint.keep=100", "output.hash_every_loops=1"]
    llama.run(tmp_path / "run", *arguments)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for later in range(loops + 1, BROKEN_LOOPS + 1):
        shutil.rmtree(tmp_path / "again/checkpoints" / str(later))
    shutil.rmtree(tmp_path / "again/model")
    succeed("resume", tmp_path / "again", ranks=2)
    assert_same_run(tmp_path / "run", tmp_path / "again")


def test_plan_says_what_it_costs(llama: Case) -> None:
    out = succeed("plan", llama.config, *measured(llama)).out
    line = next(line for line in out.splitlines() if "logits to evaluate" in line)
    assert f"{2 * 10 * 12 * 53 * 4 / 1000:.2f} kB" in line, "once kept, and once to be compared"
    assert "logits to evaluate" not in succeed("plan", llama.config).out


def test_a_trial_keeps_within_its_budget(llama: Case, tmp_path: Path) -> None:
    """As the run that it stands for; the start is the server's."""
    key, _, value = budget_of(llama).partition("=")
    llama.run(tmp_path / "run", *measured(llama, f"{key}={value}"))
    server = Server(llama.config, "output.dir=unused", *measured(llama))
    assert server.hear()["kl"] == 0
    for overrides in ({}, {key: float(value)}, {}, {key: float(value)}):
        server.say({"id": 1, "overrides": overrides})
        result, lines = server.result()
        assert ("kept_passes" in result) == bool(overrides)
    expected = result_of(tmp_path / "run")
    assert all(result[name] == expected[name] for name in ("score", "kl_unlearn", "kept_passes"))
    assert [line["kl"] for line in lines] == [
        line["kl"] for line in lines_of(tmp_path / "run", "eval")[1:]
    ]
    assert server.end() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate.kl.budget=0.1"], ["evaluate.kl.budget", "evaluate.kl.file"]),
        (["evaluate.kl.rows=11"], ["evaluate.kl.rows is 11", "retain_validation.h5 has 10 rows"]),
        (["evaluate.kl.budget=-1"], ["evaluate.kl.budget", "-1"]),
    ],
)
def test_mistakes(llama: Case, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    file = [] if "file" in words[-1] else measured(llama)[:1]
    said = fail(2, "run", llama.config, f"output.dir={tmp_path / 'run'}", *file, *arguments, ranks=2)
    assert all(word in said for word in words)


def test_what_the_budget_takes_back_breaks_no_limit_of_a_search() -> None:
    class Trial:
        def report(self, value: float, step: int) -> None:
            pass

    def broken(budget: float | None, kl: float, accuracy: float) -> str | None:
        seen = Evaluations(Trial(), "forget_loss", [Limit("accuracy", 0.5, None)], budget)
        seen.see({"at": "unlearn", "passes": 10, "forget_loss": 2.0, "kl": kl, "accuracy": accuracy})
        return seen.broken

    assert broken(0.1, 0.2, 0.4) is None and broken(0.1, 0.05, 0.6) is None
    assert broken(0.1, 0.05, 0.4) and broken(None, 0.2, 0.4)
