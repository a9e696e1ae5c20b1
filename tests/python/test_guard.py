"""The guard: whatever one rank sends that is not finite ends the run with exit 4, and nothing of it is
written: the checkpoint of the loop before stays the newest, and as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fault_helpers import faulty
from job_helpers import (
    assert_same_state, checkpoints_of, fail, lines_of, result_of, state_of, succeed,
)  # fmt: skip
from model_helpers import Case

GRADIENTS = 3  # a loop's messages of one gradient: a tensor each
SETTINGS = [
    "unlearn.loops=2",
    "checkpoint.every_loops=1",
    "evaluate.every_passes=1000",
    "relearn.passes=0",
]
# What the numbers of a loop are, in the order in which they cross between ranks. Of those that cross
# together only the first is spoilt: the loss, with which its gradient's sum of squares goes.
NUMBERS = {
    "fresh": [
        *["the retain gradient"] * GRADIENTS, "the retain loss",
        *["the adversary's gradient"] * GRADIENTS, "the adversary's loss",
        *["the unlearning gradient"] * GRADIENTS, "the unlearning loss", "the unlearning gradient",
    ],
    # One forward for both losses, of which one is the other's negative.
    "listing": [
        *["the retain gradient"] * GRADIENTS, "the retain loss",
        *["the adversary's gradient"] * GRADIENTS, "the adversary's loss",
        *["the unlearning gradient"] * GRADIENTS, "the unlearning gradient",
    ],
}  # fmt: skip


class Undisturbed:
    """A run on two ranks, and which message between them is which."""

    def __init__(self, tiny: Case, graph: str, folder: Path):
        self.run, self.settings, self.case = (
            folder / "run",
            [*SETTINGS, f"unlearn.graph={graph}"],
            tiny,
        )
        log = folder / "log"
        every = faulty(-1, "data", 0, 1 << 30, "log", log)
        tiny.run(self.run, *self.settings, "checkpoint.keep=9", ranks=2, wrapper=every)
        lines = [line.split() for line in log.read_text().splitlines()]
        kinds = [kind for _, kind in lines]
        # The sums of the mask are the most numbers: with them a loop ends.
        most = max(int(size) for size, kind in lines if kind == "sum")
        ends = [i for i, (size, kind) in enumerate(lines) if kind == "sum" and int(size) == most]
        self.first = kinds.index("gradient", ends[0])
        kinds = kinds[self.first : ends[1] + 1]
        self.numbers = NUMBERS[graph]
        assert len(kinds) == len(self.numbers)
        for kind, number in zip(kinds, self.numbers):
            assert kind == "sum" or number.endswith("gradient")

    def spoilt(
        self, folder: Path, rank: int, first: int, last: int, action: str
    ) -> tuple[Path, str]:
        """The run with loop 1's numbers from `first` to `last` spoilt; its folder and message."""
        wrapper = faulty(rank, "data", self.first + first, self.first + last, action)
        arguments = ["run", self.case.config, f"output.dir={folder}", *self.settings]
        return folder, fail(4, *arguments, ranks=2, wrapper=wrapper)


@pytest.fixture(scope="module")
def undisturbed(tiny: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    return {graph: Undisturbed(tiny, graph, tmp_path_factory.mktemp(graph)) for graph in NUMBERS}


def assert_nothing_written(whole: Undisturbed, run: Path, reason: str) -> None:
    assert result_of(run)["status"] == "rejected" and result_of(run)["reason"] == reason
    assert checkpoints_of(run) == [1] and not (run / "model").exists()
    assert_same_state(whole.run, run, 1)
    assert all(np.isfinite(values).all() for values in state_of(run).values())
    assert len(lines_of(run, "unlearn")) == 2


def places(graph: str) -> list[int]:
    """Of each gradient one message, and each sum."""
    names = NUMBERS[graph]
    return [i for i, name in enumerate(names) if names[i + 1 : i + 2] != [name]]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", places("fresh"))
def test_every_number_of_every_rank(
    undisturbed: dict[str, Undisturbed], tmp_path: Path, number: int, rank: int
) -> None:
    whole = undisturbed["fresh"]
    run, message = whole.spoilt(tmp_path / "run", rank, number, number, "nan")
    reason = f"loop 1: {whole.numbers[number]} is not finite"
    assert message.endswith(f"rejected: {reason}")
    assert_nothing_written(whole, run, reason)


@pytest.mark.parametrize("number", places("listing"))
def test_every_number_of_the_listing(
    undisturbed: dict[str, Undisturbed], tmp_path: Path, number: int
) -> None:
    whole = undisturbed["listing"]
    run, message = whole.spoilt(tmp_path / "run", number % 2, number, number, "nan")
    reason = f"loop 1: {whole.numbers[number]} is not finite"
    assert message.endswith(f"rejected: {reason}")
    assert_nothing_written(whole, run, reason)


@pytest.mark.parametrize("graph", NUMBERS)
def test_norm_zero(undisturbed: dict[str, Undisturbed], tmp_path: Path, graph: str) -> None:
    """Only if no rank has any gradient: what one of them adds is enough to go on."""
    whole = undisturbed[graph]
    last = max(i for i, name in enumerate(whole.numbers[:-1]) if name == "the unlearning gradient")
    run, message = whole.spoilt(tmp_path / "run", -1, last - GRADIENTS + 1, last, "zero")
    reason = "loop 1: the norm of the unlearning gradient is zero: there is nothing to normalize"
    assert message.endswith(f"rejected: {reason}")
    assert_nothing_written(whole, run, reason)
    first = whole.first + last
    arguments = ["run", whole.case.config, f"output.dir={tmp_path / 'on'}", *whole.settings]
    one = faulty(1, "data", first - GRADIENTS + 1, first, "zero")
    succeed(*arguments, ranks=2, wrapper=one)


def test_norm_zero_by_the_loss(tiny: Case, tmp_path: Path) -> None:
    """Every token is below clip_at: the loss has no gradient."""
    loss = [
        "unlearn.unlearning_loss_fn=correct_logit_minus_avg",
        "unlearn.clip_at=1e9",
        "unlearn.graph=fresh",
    ]
    message = tiny.rejected(tmp_path / "run", *loss)
    assert message.endswith(
        "loop 0: the norm of the unlearning gradient is zero: there is nothing to normalize"
    )
    assert checkpoints_of(tmp_path / "run") == []
