"""What plan says of the collectives of a loop and a step is what a run makes: number and bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from job_helpers import succeed
from model_helpers import hollow_llama, random_case
from test_shard import ATTACKS, case_in, machine_of_two

# Evaluation, save and export come after the last loop, and there is nothing else beside loops and steps.
PLAIN = (
    "output.hash_every_loops=0",
    "checkpoint.every_loops=100",
    "evaluate.every_passes=1000",
    "data.micro_batch=2",
)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case_in(tmp_path_factory.mktemp("traffic"))


def told(text: str) -> dict[str, str]:
    """What was said of each thing: {"a loop": "3 reductions of ..."}."""
    return dict(re.findall(r"collectives of (.*?): (.*)$", text, re.M))


def made(case: Path, folder: Path, *overrides: str, ranks: int, checked: pytest.MonkeyPatch) -> dict:
    checked.setenv("MUDMAN_CHECK_COLLECTIVES", "1")
    outcome = succeed("run", case, f"output.dir={folder}", *overrides, ranks=ranks)
    checked.delenv("MUDMAN_CHECK_COLLECTIVES")
    return told(outcome.err)


def compare(
    case: Path,
    folder: Path,
    *overrides: str,
    ranks: int,
    checked: pytest.MonkeyPatch,
    planned: tuple = (),
) -> dict:
    """Every loop but the last, with a fork and without; a step. What plan says is returned."""
    run = made(case, folder, *PLAIN, *overrides, ranks=ranks, checked=checked)
    plan = told(succeed("plan", case, *PLAIN, *overrides, "--ranks", ranks, *planned).out)
    loops = [text for what, text in run.items() if what.startswith("loop ")]
    assert loops[:3] == [plan["a loop"]] * 3
    if "a step of relearning" in plan:
        assert run["relearning step 0"] == plan["a step of relearning"]
    return plan


@pytest.mark.parametrize("shard", ["none", "full"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_plan_counts_what_a_run_makes(
    case: Path, tmp_path: Path, ranks: int, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(case, tmp_path / "run", f"model.shard={shard}", ranks=ranks, checked=monkeypatch)


def test_one_rank_has_none(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in ("none", "full"):
        run = tmp_path / shard
        plan = compare(case, run, f"model.shard={shard}", ranks=1, checked=monkeypatch)
        assert set(plan.values()) == {"nothing"}


VARIANTS = {
    "fresh": ("unlearn.graph=fresh", "unlearn.normalization=per_parameter"),
    "reuse": ("unlearn.graph=reuse", "model.shard=full"),
    "no_adversary": ("unlearn.train_adversary=false",),
    "npo": ("unlearn.unlearning_loss_fn=npo", "unlearn.graph=fresh"),
    "stream_activation": ("unlearn.unlearning_loss_fn=stream_activation", "model.shard=full"),
    "circuit_breaker": ("unlearn.unlearning_loss_fn=circuit_breaker", "unlearn.rep_eng_retain_lr=0.5"),
    "adapters": ("unlearn.adv_lora_rank=2", "unlearn.fork_every_n_loops=12"),
    "base_of_adapters": ("unlearn.lora_rank=3", "unlearn.train_adversary=false"),
    "recompute": ("model.recompute=layer", "model.shard=full"),
    "recompute_fresh": ("model.recompute=layer", "unlearn.graph=fresh"),
    "bfloat16": ("model.dtype=bfloat16", "device=cpu", "model.state_dtype=bfloat16"),
    "few_sequences": ("data.batch_size=2", "model.shard=full"),
    "exact": ("reduction=exact", "model.shard=full"),
    "exact_adapters": ("reduction=exact", "unlearn.adv_lora_rank=2", "unlearn.fork_every_n_loops=12"),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(
    case: Path, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(case, tmp_path / "run", *VARIANTS[variant], ranks=3, checked=monkeypatch)


def test_few_buckets_between_many_machines(tmp_path: Path) -> None:
    """Eight to nine machines of eight ranks, 1 GB of gradients in 16 layers."""
    shape = {"width": 1024, "mlp": 16384, "layers": 16, "heads": 8, "kv": 8, "vocab": 64}
    model = hollow_llama(tmp_path / "model", **shape, tied=True)
    case = random_case(
        tmp_path, model, batch=16, context=8, unlearn__target_modules=["gate_proj"], examples=64
    )
    for ranks, buckets in ((64, 8), (72, 4)):
        loop = told(succeed("plan", case, "--ranks", ranks).out)["a loop"]
        assert loop.startswith(f"{3 * buckets} reductions of ")
        assert f", {3 * buckets} gathers of " in loop


@pytest.mark.parametrize("shard", ["none", "full"])
def test_attacks(case: Path, tmp_path: Path, shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections do not tell attacks apart: each alone, as the only one of a list."""
    for name, how in re.findall(r"\{name: (\w+)(.*?)\}", ATTACKS):
        one = (f"relearn.attacks=[{{name: {name}{how}}}]", f"model.shard={shard}", *PLAIN)
        run = made(case, tmp_path / name, *one, ranks=3, checked=monkeypatch)
        plan = told(succeed("plan", case, *one, "--ranks", 3).out)
        assert run["relearning step 0"] == plan[f"a step of relearning by {name}"]


@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("variant", ["listing", "stream_activation", "adapters", "exact"])
def test_machines_of_two(
    case: Path, tmp_path: Path, ranks: int, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """model.shard: node on machines of two ranks."""
    monkeypatch.setenv("MUDMAN_NEAR_RANKS", "2")
    more = [o for o in VARIANTS.get(variant, ()) if not o.startswith("model.shard")]
    plan = compare(
        case, tmp_path / "run", *more, "model.shard=node",
        ranks=ranks, checked=monkeypatch, planned=("--machine", machine_of_two(tmp_path)),
    )  # fmt: skip
    assert "near gather" in plan["a loop"]
