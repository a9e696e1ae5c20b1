"""model.shard: full and node: the same bits as with the whole model on every rank."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from job_helpers import assert_same_run, assert_same_state, snapshot, succeed
from model_helpers import random_case, random_llama, write_questions

VOCAB = 131
ATTACKS = (
    "[{name: sgd}, {name: adamw, optimizer: adamw, lr: 0.01}, "
    "{name: lora, lora_rank: 3}, {name: both, lora_rank: 2, optimizer: adamw, lr: 0.01},"
    " {name: half, optimizer: adamw, lr: 0.01, state_dtype: bfloat16}]"
)
FULL, NODE = "model.shard=full", "model.shard=node"
TWO_NEAR = {"MUDMAN_NEAR_RANKS": "2"}  # a machine of two ranks, and so on
VARIANTS = {
    "listing": (),
    "fresh": ("unlearn.graph=fresh", "unlearn.normalization=global_post_mask"),
    "reuse": ("unlearn.graph=reuse", "unlearn.normalization=per_parameter"),
    "no_adversary": ("unlearn.train_adversary=false",),
    "npo": ("unlearn.unlearning_loss_fn=npo", "unlearn.graph=fresh"),
    "simnpo": ("unlearn.unlearning_loss_fn=simnpo",),
    "neg_entropy": ("unlearn.unlearning_loss_fn=neg_entropy",),
    "circuit_breaker": (
        "unlearn.unlearning_loss_fn=circuit_breaker",
        "unlearn.rep_eng_retain_lr=0.5",
    ),
    "stream_activation": (
        "unlearn.unlearning_loss_fn=stream_activation",
        "unlearn.forget_momentum=0.5",
        "unlearn.rep_eng_retain_lr=0.5",
        "model.state_dtype=bfloat16",
    ),
    "rmu": ("unlearn.unlearning_loss_fn=rmu", "unlearn.rmu_layer=1"),
    "adapters": (
        "unlearn.adv_lora_rank=2",
        "unlearn.adv_lora_count=2",
        "unlearn.fork_every_n_loops=12",
    ),
    "base_of_adapters": ("unlearn.lora_rank=3", "unlearn.train_adversary=false"),
    "bfloat16": ("model.dtype=bfloat16", "device=cpu"),
    "reduced_as_bfloat16": ("reduce_dtype=bfloat16",),
    "exact": ("reduction=exact",),
    "exact_adapters": (
        "reduction=exact",
        "unlearn.adv_lora_rank=2",
        "unlearn.fork_every_n_loops=12",
    ),
}


def case_in(folder: Path, **model: object) -> Path:
    """Seven sequences: uneven shares; five layers: more than slots; rows that no ranks divide."""
    made = random_llama(folder / "model", width=32, mlp=61, vocab=VOCAB, layers=5, **model)
    generator = np.random.default_rng(3)
    questions = write_questions(
        folder / "questions.h5",
        [generator.integers(0, VOCAB, n) for n in (3, 9, 5, 7, 4, 6, 8, 2, 5, 3, 4)],
        np.stack([generator.permutation(VOCAB)[:4] for _ in range(11)]),
        generator.integers(0, 4, 11),
    )
    return random_case(
        folder, made, batch=7, context=11, unlearn__target_modules=["gate_proj", "v_proj"],
        unlearn__fork_every_n_loops=2, output__hash_every_loops=1, evaluate__every_passes=5,
        checkpoint__every_loops=2, relearn__passes=2,
        evaluate__multiple_choice=[{"name": "q", "file": str(questions), "temperature": 1}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case_in(tmp_path_factory.mktemp("shard"))


def machine_of_two(folder: Path) -> Path:
    """A file for `plan --machine`: two ranks each."""
    hops = "{start: 0, inside: 0, across: 0}"
    file = folder / "machine.yaml"
    file.write_text(
        "device: cpu\nranks: 2\nfloat32: 1e11\nbfloat16: 1e11\nmemory: 1e10\nstart: 0\ninside: 1e9\n"
        f"across: 1e9\nloss: 0\nbeside: false\nbucket: {hops}\nsum: {hops}\n"
    )
    return file


def assert_same(case: Path, folder: Path, *overrides: str, ranks: int) -> None:
    """State, every digit of every line, attacks and questions among them, and the model."""
    sharded = {"none": (), "full": (FULL,)} | ({"node": (NODE,)} if ranks > 2 else {})
    for name, more in sharded.items():
        succeed(
            "run", case, f"output.dir={folder / name}", *overrides, *more, ranks=ranks, env=TWO_NEAR
        )
        assert_same_run(folder / "none", folder / name)


@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (7, 1), (1, 2), (2, 2), (2, 3), (7, 4)])
def test_micro_batches_and_attacks(case: Path, tmp_path: Path, micro: int, ranks: int) -> None:
    attacks = f"relearn.attacks={ATTACKS}"
    assert_same(case, tmp_path, attacks, f"data.micro_batch={micro}", ranks=ranks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(case: Path, tmp_path: Path, variant: str) -> None:
    assert_same(case, tmp_path, "data.micro_batch=2", *VARIANTS[variant], ranks=3)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("ranks", [9])
def test_ranks_beyond_the_batch(case: Path, tmp_path: Path, ranks: int, exact: bool) -> None:
    """Seven sequences on more ranks: the same as on seven, which have one each."""
    more = ["reduction=exact", "data.micro_batch=1"] if exact else ["data.micro_batch=1"]
    attacks = "[{name: sgd}, {name: lora, lora_rank: 3}]"
    more += ["unlearn.rep_eng_retain_lr=0.5", f"relearn.attacks={attacks}"]
    assert_same(case, tmp_path, *more, ranks=ranks)
    if exact:
        succeed("run", case, f"output.dir={tmp_path / 'seven'}", *more, ranks=7)
        assert_same_run(tmp_path / "seven", tmp_path / "full")
    told = succeed("plan", case, *more, "--ranks", ranks).err
    assert f"{ranks - 7} of {ranks} ranks have no" in told


@pytest.mark.parametrize("graph", ["listing", "fresh"])
@pytest.mark.parametrize("loss", ["neg_cross_entropy", "circuit_breaker"])
def test_recomputed(case: Path, tmp_path: Path, graph: str, loss: str) -> None:
    """Activations that are computed anew are the same bits, whole or spread; and take less memory."""
    more = [f"unlearn.graph={graph}", f"unlearn.unlearning_loss_fn={loss}", "data.micro_batch=2",
            f"relearn.attacks={ATTACKS}", "unlearn.target_modules=[q_proj]"]  # fmt: skip
    again, kept = "model.recompute=layer", tmp_path / "kept"
    succeed("run", case, f"output.dir={kept}", *more, ranks=2)
    for name, shard in (("none", "model.shard=none"), ("full", FULL)):
        run = tmp_path / name
        succeed("run", case, f"output.dir={run}", *more, again, shard, ranks=2)
        assert_same_run(kept, run)
    activations = [
        re.search(r"^activations +(.*)$", succeed("plan", case, *more, *which).out, re.M)[1]
        for which in ([], [again])
    ]
    numbers = [[float(n) for n in re.findall(r"([0-9.]+) kB", text)] for text in activations]
    assert numbers[1][1] < 0.8 * numbers[0][1] and numbers[1][2] < 0.6 * numbers[0][2]


def test_auto(case: Path, tmp_path: Path) -> None:
    """The least sharding that fits, here into the memory of the machine; test_memory.py has limits."""
    more = ("model.shard=auto", "data.micro_batch=1")
    assert "model.shard: auto is none where every rank has" in succeed("plan", case, *more).out
    machines = ("--ranks", 4, "--machine", machine_of_two(tmp_path))
    out = succeed("plan", case, *more, *machines).out
    assert re.search("auto is none .*, else node, whose peak is .*, else full, whose peak is", out)
    said = succeed("run", case, f"output.dir={tmp_path / 'run'}", *more, ranks=2).err
    assert "model.shard: auto is none" in said and "auto is full" not in said


def test_resumed_in_either_way(case: Path, tmp_path: Path) -> None:
    """A checkpoint says nothing of where the weights were; ranks may change too."""
    few = ("reduction=exact", "data.micro_batch=2", "checkpoint.every_loops=1")
    succeed("run", case, f"output.dir={tmp_path / 'whole'}", *few)
    run = tmp_path / "run"
    succeed("run", case, f"output.dir={run}", *few, "unlearn.loops=1", ranks=3)
    succeed("resume", run, "unlearn.loops=2", FULL, ranks=2)
    succeed("resume", run, "unlearn.loops=3", NODE, ranks=4, env=TWO_NEAR)
    succeed("resume", run, "unlearn.loops=4", "model.shard=none", ranks=2)
    assert_same_state(tmp_path / "whole", run)
    assert snapshot(tmp_path / "whole" / "model") == snapshot(run / "model")

