"""reduction: exact: the same bits on any number of ranks and threads, through the whole program."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from job_helpers import (
    assert_same_run,
    assert_same_state,
    fail,
    lines_of,
    repeatable_metrics,
    snapshot,
    succeed,
)
from model_helpers import random_case, random_llama, write_questions

VOCAB = 131
PLACES = [(1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (8, 1), (8, 2)]
ATTACKS = (
    "[{name: sgd}, {name: adamw, optimizer: adamw, lr: 0.01}, "
    "{name: lora, lora_rank: 3}, {name: both, lora_rank: 2, optimizer: adamw, lr: 0.01},"
    " {name: half, optimizer: adamw, lr: 0.01, state_dtype: bfloat16}]"
)
# A few that between them have every kind of sum: of the mask, of tensors, of layers, of sequences.
VARIANTS = {
    "listing": (),
    "fresh_post_mask": ("unlearn.graph=fresh", "unlearn.normalization=global_post_mask"),
    "reuse": ("unlearn.graph=reuse", "unlearn.normalization=per_parameter"),
    "stream_activation": (
        "unlearn.unlearning_loss_fn=stream_activation",
        "unlearn.forget_momentum=0.5",
        "unlearn.rep_eng_retain_lr=0.5",
        "model.state_dtype=bfloat16",
    ),
    "adapters": (
        "unlearn.adv_lora_rank=2",
        "unlearn.adv_lora_count=2",
        "unlearn.fork_every_n_loops=12",
    ),
    "base_of_adapters": ("unlearn.lora_rank=3", "unlearn.train_adversary=false"),
    "bfloat16": ("model.dtype=bfloat16", "device=cpu"),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sequences in leaves of one; two pieces of a product; rows that no number of ranks divides."""
    folder = tmp_path_factory.mktemp("exact")
    model = random_llama(folder / "model", width=32, mlp=301, layers=2, vocab=VOCAB)
    generator = np.random.default_rng(3)
    questions = write_questions(
        folder / "questions.h5",
        [generator.integers(0, VOCAB, n) for n in (3, 9, 5, 7, 4, 6, 8, 2, 5, 3, 4)],
        np.stack([generator.permutation(VOCAB)[:4] for _ in range(11)]),
        generator.integers(0, 4, 11),
    )
    return random_case(
        folder, model, batch=8, context=11, unlearn__target_modules=["gate_proj", "v_proj"],
        unlearn__fork_every_n_loops=2, reduction="exact", output__hash_every_loops=2,
        evaluate__every_passes=5, checkpoint__every_loops=2,
        evaluate__multiple_choice=[{"name": "q", "file": str(questions), "temperature": 1}],
    )  # fmt: skip


def hashes(run: Path) -> list[str | None]:
    return [line.get("state_hash") for line in lines_of(run, "unlearn")]


@pytest.fixture(scope="module")
def alone(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with every attack on one rank of one thread."""
    run = tmp_path_factory.mktemp("alone") / "run"
    succeed("run", case, f"output.dir={run}", f"relearn.attacks={ATTACKS}")
    return run


@pytest.mark.parametrize(("ranks", "threads"), PLACES)
def test_any_ranks_and_threads(
    case: Path, alone: Path, tmp_path: Path, ranks: int, threads: int
) -> None:
    """State, every digit of every line, attacks and questions among them, and the model."""
    run = tmp_path / "run"
    arguments = (f"output.dir={run}", f"relearn.attacks={ATTACKS}")
    succeed("run", case, *arguments, ranks=ranks, threads=threads)
    assert hashes(run) == hashes(alone)
    assert_same_run(alone, run)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(case: Path, tmp_path: Path, variant: str) -> None:
    """In leaves of three, of which the last has two; three ranks have one each."""
    for ranks, threads in ((1, 1), (2, 2), (3, 1)):
        succeed(
            "run", case, f"output.dir={tmp_path / str(ranks)}", *VARIANTS[variant],
            "data.micro_batch=3", "relearn.passes=2", ranks=ranks, threads=threads,
        )  # fmt: skip
        assert_same_run(tmp_path / "1", tmp_path / str(ranks))


def test_resumed_on_other_ranks(case: Path, alone: Path, tmp_path: Path) -> None:
    """From four ranks to three to one: as if never stopped."""
    run = tmp_path / "run"
    few = (f"relearn.attacks={ATTACKS}", "checkpoint.every_loops=1")
    succeed("run", case, f"output.dir={run}", *few, "unlearn.loops=1", ranks=4)
    succeed("resume", run, "unlearn.loops=3", ranks=3)
    succeed("resume", run, "unlearn.loops=4", ranks=2, threads=2)
    assert_same_state(alone, run)
    assert hashes(run) == hashes(alone)
    last = [line for line in repeatable_metrics(alone) if '"relearn"' in line]
    assert [line for line in repeatable_metrics(run) if '"relearn"' in line][-len(last) :] == last
    assert snapshot(alone / "model") == snapshot(run / "model")


def test_hash_is_of_the_state(case: Path, tmp_path: Path) -> None:
    """There every second loop, the same again, another with another state; with fast as well."""
    quick = ("relearn.passes=0", "reduction=fast", "data.micro_batch=8")
    for name, more in (
        ("one", ()),
        ("two", ()),
        ("rate", ("unlearn.adv_lr=0.1001",)),
        ("none", ("output.hash_every_loops=0",)),
    ):
        succeed("run", case, f"output.dir={tmp_path / name}", *quick, *more)
    one = hashes(tmp_path / "one")
    assert [hash is not None for hash in one] == [False, True, False, True]
    assert all(len(hash) == 32 for hash in one if hash)
    assert one == hashes(tmp_path / "two")
    assert all(a != b for a, b in pairwise([one[1], one[3], hashes(tmp_path / "rate")[1]]))
    assert hashes(tmp_path / "none") == [None] * 4
    assert_same_state(tmp_path / "one", tmp_path / "none")


def test_micro_batch_is_the_leaf(case: Path, tmp_path: Path) -> None:
    """Other leaves are other sums: nothing says that they give the same bits, and they don't."""
    for micro in (1, 2):
        succeed(
            "run", case, f"output.dir={tmp_path / str(micro)}", f"data.micro_batch={micro}",
            "relearn.passes=0",
        )  # fmt: skip
    assert hashes(tmp_path / "1") != hashes(tmp_path / "2")


def test_fewer_leaves_than_ranks(case: Path, tmp_path: Path) -> None:
    """The fourth rank has none, which is said, and the bits are the same."""
    few = ("data.micro_batch=3", "relearn.passes=2")
    succeed("run", case, f"output.dir={tmp_path / '1'}", *few)
    told = succeed("run", case, f"output.dir={tmp_path / '4'}", *few, ranks=4).err
    assert "1 of 4 ranks have no leaf" in told
    assert_same_run(tmp_path / "1", tmp_path / "4")


def test_not_with_rounded_reductions(case: Path) -> None:
    message = fail(2, "plan", case, "reduce_dtype=bfloat16")
    assert "reduce_dtype" in message and "reduction: exact" in message
