"""Which rows the phases read: an attack never reads a row that is evaluated; plan counts them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from job_helpers import BINARY, environment, fail, lines_of, succeed
from model_helpers import random_case, random_llama, write_tokens

BATCH, CONTEXT, VOCAB = 4, 12, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "model"
    return random_llama(folder, width=16, mlp=24, layers=1, vocab=VOCAB)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    return random_case(tmp_path, model, batch=BATCH, context=CONTEXT, relearn__passes=24,
                       relearn__lr=0.02, output__save_model=False)  # fmt: skip


def some_rows(path: Path, n: int, seed: int = 3) -> Path:
    rows = np.random.default_rng(seed).integers(0, VOCAB, (n, CONTEXT))
    return write_tokens(path, rows, VOCAB)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines_of(run, "relearn")]


def counted(out: str) -> dict[str, tuple[int, int, int]]:
    """Of plan's rows: has, uses, repeats."""
    found = re.findall(r"^(\w+, \w+) +(\d+) +(\d+) +(\d+)$", out, re.M)
    return {name: tuple(map(int, numbers)) for name, *numbers in found}


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_attack_comes_round_to_the_first_row_behind_the_evaluated(
    config: Path, tmp_path: Path, ranks: int
) -> None:
    """Rows 4 to 9 of 10, again and again: as a file of these alone, evaluated on another."""
    whole, rows = tmp_path / "whole.h5", np.random.default_rng(1).integers(0, VOCAB, (10, CONTEXT))
    write_tokens(whole, rows, VOCAB)
    first = write_tokens(tmp_path / "first.h5", rows[:BATCH], VOCAB)
    behind = write_tokens(tmp_path / "behind.h5", rows[BATCH:], VOCAB)
    one = [f"data.forget_validation={whole}", f"output.dir={tmp_path / 'one'}"]
    two = [f"data.forget_validation={behind}", f"data.forget_evaluation={first}",
           f"data.retain_evaluation={first}", f"output.dir={tmp_path / 'two'}"]  # fmt: skip
    succeed("run", config, *one, ranks=ranks)
    succeed("run", config, *two, ranks=ranks)
    assert len(losses(tmp_path / "one")) == 12
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_a_row_that_is_evaluated_is_left_out_of_another_file(config: Path, tmp_path: Path) -> None:
    """Also where both files are one, and where only some rows are copies."""
    shared = some_rows(tmp_path / "shared.h5", 9)
    own = [f"data.{kind}_evaluation={shared}" for kind in ("forget", "retain")]
    both = [f"data.forget_validation={shared}", *own]
    outcome = succeed("run", config, *both, f"output.dir={tmp_path / 'one'}")
    assert f"relearning leaves out 4 of the 9 rows of {shared}" in outcome.err
    succeed("run", config, f"data.forget_validation={shared}", f"output.dir={tmp_path / 'two'}")
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_none_left(config: Path, tmp_path: Path) -> None:
    small = some_rows(tmp_path / "small.h5", BATCH)
    for command in (["plan", config], ["run", config, f"output.dir={tmp_path / 'r'}"]):
        message = fail(2, *command, f"data.forget_validation={small}")
        assert "data.forget_validation: relearning finds no row" in message
        assert "lower evaluate.batches" in message and "data.forget_evaluation" in message
    assert not (tmp_path / "r").exists()
    retain = f"data.retain_validation={small}"
    assert "data.retain_validation" in fail(2, "plan", config, retain, "relearn.with_retain=true")
    succeed("plan", config, retain)  # only evaluated
    succeed("plan", config, f"data.forget_validation={small}", "relearn.passes=0")
    folder = f"output.dir={tmp_path / 'r'}"
    message = fail(2, "run", config, f"data.forget_validation={small}", folder, ranks=2)
    assert "finds no row" in message


def test_plan_counts_rows_and_warns_of_repeats(config: Path, tmp_path: Path) -> None:
    small = some_rows(tmp_path / "small.h5", BATCH + 3)
    arguments = [f"data.forget_validation={small}", "unlearn.loops=7", "relearn.with_retain=true"]
    plan = succeed("plan", config, *arguments)
    assert counted(plan.out) == {
        "unlearning, forget": (24, 24, 4),
        "unlearning, retain": (24, 24, 4),
        "evaluation, forget": (7, 4, 0),
        "evaluation, retain": (24, 4, 0),
        "relearning, forget": (3, 3, 21),
        "relearning, retain": (20, 20, 4),
    }
    run = succeed("run", config, *arguments, f"output.dir={tmp_path / 'r'}")
    warning = f"relearning has 3 rows of {small}, fewer than data.batch_size 4: a batch holds rows"
    assert warning in plan.err and warning in run.err
    twice = succeed("plan", config, f"data.forget_validation={small}", "evaluate.batches=2",
                    "relearn.passes=0")  # fmt: skip
    assert f"evaluation counts rows of {small} more than once" in twice.err
    assert "warning" not in succeed("plan", config).err


def test_a_trial_that_evaluates_every_row_is_an_error(config: Path, tmp_path: Path) -> None:
    small = some_rows(tmp_path / "small.h5", 2 * BATCH)
    requests = [{"evaluate.batches": 2}, {"evaluate.batches": 1}]
    lines = "".join(json.dumps({"id": i, "overrides": r}) + "\n" for i, r in enumerate(requests))
    command = [str(BINARY), "trials", str(config), f"data.forget_validation={small}"]
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, env=environment(1), timeout=60
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    results = [answer for answer in answers if answer["event"] == "result"]
    assert done.returncode == 0 and [r["status"] for r in results] == ["error", "done"]
    assert "relearning finds no row" in results[0]["reason"] and results[1]["score"] > 0

