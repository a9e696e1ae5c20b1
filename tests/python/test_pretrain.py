"""mudman-mpi pretrain: a model from scratch, repeatable, that the program then unlearns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from job_helpers import (
    Outcome,
    fail,
    lines_of,
    metrics_of,
    repeatable_metrics,
    result_of,
    snapshot,
    succeed,
)
from model_helpers import Case, assert_headers_agree, floats_of, write_config

STEPS = 80


@pytest.fixture(scope="module")
def recipe(tiny: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "data.retain": tiny.data / "retain.h5",
        "data.forget": tiny.data / "forget.h5",
        "data.batch_size": 4,
        "data.context_length": 12,
        "pretrain.config": tiny.model / "config.json",
        "pretrain.steps": STEPS,
        "pretrain.lr": 0.02,
        "pretrain.warmup": 10,
    }
    return write_config(tmp_path_factory.mktemp("recipe") / "pretrain.yaml", settings)


def pretrain(recipe: Path, run: Path, *overrides: str, ranks: int = 1) -> Outcome:
    return succeed("pretrain", recipe, f"output.dir={run}", *overrides, ranks=ranks)


def losses(run: Path) -> np.ndarray:
    lines = [line for line in metrics_of(run) if line["phase"] == "pretrain"]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return np.array([line["loss"] for line in lines])


@pytest.fixture(scope="module")
def one(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of one rank. To be read only."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(recipe, run)
    return run


def test_loss_falls(one: Path) -> None:
    """From that of an even guess over 53 tokens, once for each step."""
    found = losses(one)
    assert len(found) == STEPS and found[0] == pytest.approx(np.log(53), abs=0.1)
    assert found[-5:].mean() < found[:5].mean() - 1


def test_model_folder_is_complete(one: Path, tiny: Case) -> None:
    assert sorted(path.name for path in one.iterdir()) == ["config.yaml", "metrics.jsonl", "model"]
    assert (one / "model/config.json").read_bytes() == (tiny.model / "config.json").read_bytes()
    assert_headers_agree(one / "model", tiny.model)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_same_count_repeats_bit_by_bit(recipe: Path, one: Path, tmp_path: Path, ranks: int) -> None:
    pretrain(recipe, tmp_path / "a", ranks=ranks)
    if ranks > 1:
        pretrain(recipe, tmp_path / "b", ranks=ranks)
    other = tmp_path / "b" if ranks > 1 else one
    assert snapshot(tmp_path / "a" / "model") == snapshot(other / "model")
    assert repeatable_metrics(tmp_path / "a") == repeatable_metrics(other)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_agree(recipe: Path, one: Path, tmp_path: Path, ranks: int) -> None:
    """AdamW divides by the size of the gradient, so that rounding grows with the steps."""
    pretrain(recipe, tmp_path / "run", ranks=ranks)
    found, expected = losses(tmp_path / "run"), losses(one)
    assert found[:10] == pytest.approx(expected[:10], rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-2)


def test_seed_and_data_matter(recipe: Path, one: Path, tmp_path: Path) -> None:
    pretrain(recipe, tmp_path / "seed", "seed=7", "pretrain.steps=2")
    pretrain(recipe, tmp_path / "alone", "data.forget=null", "pretrain.steps=2")
    start = losses(one)[0]
    assert losses(tmp_path / "seed")[0] != start and losses(tmp_path / "alone")[0] != start


def test_other_families(golden: Callable[[str], Case], recipe: Path, tmp_path: Path) -> None:
    case = golden("neox-parallel")
    pretrain(
        recipe, tmp_path / "run", f"pretrain.config={case.model / 'config.json'}",
        f"data.retain={case.data / 'retain.h5'}", f"data.forget={case.data / 'forget.h5'}",
        "data.context_length=10",
    )  # fmt: skip
    found = losses(tmp_path / "run")
    assert found[-5:].mean() < found[:5].mean() - 0.5
    for name, values in floats_of(tmp_path / "run/model/model.safetensors").items():
        assert np.isfinite(values).all(), name


def test_result_can_be_unlearned(tiny: Case, one: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path / "run", f"model.path={one / 'model'}")
    start = lines_of(tmp_path / "run", "eval")[0]
    assert result_of(tmp_path / "run")["status"] == "done"
    said = succeed("eval", tiny.config, f"model.path={one / 'model'}").out
    loss = re.search(r"^forget loss (\S+)$", said, re.M)[1]
    assert start["forget_loss"] == pytest.approx(float(loss), abs=1e-6)


def test_divergence_rejects(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    message = fail(
        4, "pretrain", recipe, f"output.dir={run}", "pretrain.lr=1e9", "pretrain.warmup=0"
    )
    last = metrics_of(run)[-1]
    assert last["loss"] is None and f"step {last['step']}" in message
    assert not (run / "model").exists()


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("fault", ["used", "no-config", "bad-config", "no-steps"])
def test_bad_input(recipe: Path, one: Path, tmp_path: Path, fault: str, ranks: int) -> None:
    run, config = tmp_path / "run", tmp_path / "config.json"
    arguments = [f"output.dir={one if fault == 'used' else run}"]
    named = str(one) if fault == "used" else str(config)
    if fault == "bad-config":
        config.write_text(json.dumps({"model_type": "gpt2"}))
    if fault in ("no-config", "bad-config"):
        arguments.append(f"pretrain.config={config}")
    if fault == "no-steps":
        arguments.append("pretrain.steps=0")
        named = "pretrain.steps"
    before = snapshot(one)
    assert named in fail(2, "pretrain", recipe, *arguments, ranks=ranks)
    assert snapshot(one) == before and not run.exists()
