"""plan --machine: times that follow from the rates given, and files of rates that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from job_helpers import fail, succeed
from model_helpers import random_case, random_llama

WIDTH, MLP, LAYERS, VOCAB, BATCH, T = 32, 64, 3, 128, 8, 16
FREE = 1e30
RATES = {
    "device": "cpu", "ranks": 4, "float32": FREE, "bfloat16": FREE, "memory": FREE, "start": 0,
    "inside": FREE, "across": FREE, "loss": 0, "beside": "false",
    "bucket": {"start": 0, "inside": 0, "across": 0}, "sum": {"start": 0, "inside": 0, "across": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    made = random_llama(folder / "model", width=WIDTH, mlp=MLP, vocab=VOCAB, layers=LAYERS)
    return random_case(folder, made, batch=BATCH, context=T, unlearn__target_modules=["gate_proj"])


def machine(folder: Path, **rates: object) -> Path:
    lines = []
    for key, value in (RATES | rates).items():
        if isinstance(value, dict):
            value = "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
        lines.append(f"{key}: {value}\n")
    path = folder / "machine.yaml"
    path.write_text("".join(lines))
    return path


def times(case: Path, path: object, *overrides: str, ranks: int = 1) -> dict[str, float]:
    """Seconds of a loop: in all, and of each part."""
    text = succeed("plan", case, *overrides, "--ranks", ranks, "--machine", path).out
    loop = text.split("collectives of a step")[0]
    parts = dict(re.findall(r"^  (.*?):? +([0-9.]+) s", loop, re.M))
    whole = re.search(r"a loop takes ([0-9.]+) s, ([0-9.]+) tokens/s", loop)
    found = {name: float(seconds) for name, seconds in parts.items()}
    found |= {"all": float(whole[1]), "rate": float(whole[2])}
    spent = sum(s for name, s in found.items() if name not in ("all", "rate") and "or not" not in name)
    assert spent == pytest.approx(found["all"], abs=1e-5)
    assert found["rate"] == pytest.approx(2 * BATCH * T / found["all"], rel=0.01)
    return found


def test_products_are_those_of_a_loop(case: Path, tmp_path: Path) -> None:
    """Two forwards and three backwards down to the gate of layer 0; backward 2 needs no head.

    As many keys as queries: q, k, v and o are of the width's size.
    """
    head, layer = VOCAB * WIDTH, 4 * WIDTH * WIDTH + 3 * MLP * WIDTH
    forward = head + LAYERS * layer
    below = (LAYERS - 1) * layer + MLP * WIDTH + LAYERS * MLP * WIDTH
    flops = 2 * BATCH * T * (2 * forward + 3 * below + 2 * head)
    found = times(case, machine(tmp_path, float32=1e8))
    assert found["matrix products"] == pytest.approx(flops / 1e8, rel=1e-4)
    half = times(case, machine(tmp_path, bfloat16=2e8), "model.dtype=bfloat16")
    assert half["matrix products"] == pytest.approx(flops / 2e8, rel=1e-4)


def test_updates_are_traffic(case: Path, tmp_path: Path) -> None:
    """They are spread over the ranks; what is computed is spread with the batch."""
    path = machine(tmp_path, memory=1e6)
    alone, four = times(case, path), times(case, path, ranks=4)
    assert four["updates and copies"] < 0.5 * alone["updates and copies"]
    twice = times(case, machine(tmp_path, memory=5e5))
    assert twice["all"] == pytest.approx(2 * alone["all"], rel=1e-4)


def test_messages_cost_bytes_and_hops(case: Path, tmp_path: Path) -> None:
    """Three reductions of whole gradients; what crosses beside the layers is waited for less."""
    w = LAYERS * MLP * WIDTH * 4
    found = times(case, machine(tmp_path, inside=1e6), ranks=4)
    assert found["waiting for reductions"] == pytest.approx(3 * w * 3 / 4 / 1e6, rel=1e-3)
    assert found["waiting for gathers"] == pytest.approx(found["waiting for reductions"], rel=1e-3)
    hops = {"start": 0.01, "inside": 0.1, "across": 1}
    assert times(case, machine(tmp_path, bucket=hops), ranks=4)["all"] == pytest.approx(6 * 0.31)
    assert times(case, machine(tmp_path, sum=hops), ranks=8)["all"] == pytest.approx(3 * 1.61)
    slow = {"inside": 1e6, "float32": 1e8}
    waiting = times(case, machine(tmp_path, **slow), "model.shard=full", ranks=4)
    beside = times(case, machine(tmp_path, **slow, beside="true"), "model.shard=full", ranks=4)
    sent = "between ranks, waited for or not"
    assert beside[sent] == waiting[sent]
    assert beside["all"] < waiting["all"]
    assert times(case, machine(tmp_path, **slow))[sent] == 0


def test_machines_that_are_built_in(case: Path) -> None:
    small, large = (times(case, name, ranks=16)["all"] for name in ("h200x8", "h100x8"))
    assert 0 < small <= large
    assert "arithmetic: bfloat16 on a GPU" in succeed("plan", case, "--machine=h100x8").out
    assert "has GPUs, but device is cpu" in fail(2, "plan", case, "device=cpu", "--machine", "h100x8")


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"memory": 0}, r"machine.yaml:5: memory is not a number above 0"),
        ({"start": -1}, r"machine.yaml:6: start is not a number from 0 on"),
        ({"inside": "fast"}, r"machine.yaml:7: inside is not a number above 0"),
        ({"ranks": 1.5}, r"machine.yaml:2: ranks is not a number of ranks"),
        ({"beside": "perhaps"}, r"machine.yaml:10: beside is not true or false"),
        ({"speed": 1}, r"machine.yaml:13: speed is not a key of a machine"),
        ({"sum": {"start": 0, "inside": 0}}, r"machine.yaml: says nothing of 'sum.across'"),
        ({"sum": "[1"}, r"machine.yaml:"),
    ],
)
def test_files_that_are_wrong(case: Path, tmp_path: Path, rates: dict, message: str) -> None:
    assert re.search(message, fail(2, "plan", case, "--machine", machine(tmp_path, **rates)))


def test_names_that_are_wrong(case: Path) -> None:
    assert "--machine 'b200x8': not h100x8" in fail(2, "plan", case, "--machine", "b200x8")
    assert "--machine needs a name" in fail(2, "plan", case, "--machine")
    assert "run has no option '--machine'" in fail(2, "run", case, "--machine", "h100x8")
