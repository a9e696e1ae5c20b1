"""The memory of a rank on the CPU: what plan counts is what a run holds, and model.shard: auto fits into it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from job_helpers import result_of, succeed
from model_helpers import random_case, random_llama

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """59 million parameters: each peak here is 20 times what the program itself holds, or more."""
    folder = tmp_path_factory.mktemp("memory")
    shape = {"width": 512, "mlp": 2048, "layers": 6, "vocab": 65536}
    model = random_llama(folder / "model", **shape)
    return random_case(
        folder, model, batch=4, context=16, unlearn__loops=2, unlearn__unlearning_rate=1e-3,
        unlearn__retaining_rate=1e-3, unlearn__adv_lr=1e-3, relearn__lr=1e-3, device="cpu",
    )  # fmt: skip


def in_bytes(number: str, unit: str) -> float:
    return float(number) * UNITS[unit]


def planned(case: Path, *overrides: str, ranks: int) -> tuple[float, float]:
    """The peak, and what of it is the program itself."""
    out = succeed("plan", case, *overrides, "--ranks", ranks).out
    peak = re.search(r"^peak: ([\d.]+) (\w+) a rank", out, re.M)
    program = re.search(r"^program and libraries +([\d.]+) (\w+)", out, re.M)
    return in_bytes(*peak.groups()), in_bytes(*program.groups())


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ["model.shard=none"]),
        (4, ["model.shard=none"]),
        (4, ["model.shard=full"]),
        (2, ["model.shard=full", "model.dtype=bfloat16", "reduce_dtype=bfloat16"]),
    ],
)
def test_plan_counts_what_a_rank_holds(
    case: Path, tmp_path: Path, ranks: int, overrides: list[str]
) -> None:
    """Beyond it is what the program and its libraries hold once they have worked."""
    peak, _ = planned(case, *overrides, ranks=ranks)
    run = tmp_path / "run"
    succeed("run", case, f"output.dir={run}", *overrides, ranks=ranks)
    assert 0.99 * peak <= result_of(run)["peak_bytes"] <= 1.05 * peak


def test_auto_keeps_to_a_limit_on_address_space(case: Path, tmp_path: Path) -> None:
    """Beside what a rank holds, the file is in it; with that much none is chosen, with less full, and both end well."""
    ranks, limit = 2, 9 * 10**9
    short = ("unlearn.loops=1", "relearn.passes=2")
    needs = {}
    for shard in ("none", "full"):
        peak, program = planned(case, f"model.shard={shard}", *short, ranks=ranks)
        needs[shard] = peak - program + (case.parent / "model/model.safetensors").stat().st_size

    def run(name: str, space: int, loops_and_passes: tuple[str, str] = short) -> str:
        wrapper = ["env", "MUDMAN_DEBUG=1", "prlimit", f"--as={space}"]
        words = [case, f"output.dir={tmp_path / name}", "model.shard=auto", *loops_and_passes]
        return succeed("run", *words, ranks=ranks, wrapper=wrapper).err

    said = run("wide", limit, ("unlearn.loops=0", "relearn.passes=0"))
    assert "model.shard: auto is none" in said
    left = re.search(r"of memory, ([\d.]+) (\w+) of address space", said)
    taken = limit - in_bytes(*left.groups())
    assert "model.shard: auto is none" in run("enough", int(taken + needs["none"] + 20e6))
    said = run("narrow", int(taken + (needs["none"] + needs["full"]) / 2))
    assert "auto is full" in said and "of address space, and not every rank has that" in said
