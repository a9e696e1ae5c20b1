"""State hashes leave alone the copy of the state that a checkpoint is written from."""

from __future__ import annotations

from pathlib import Path

from job_helpers import assert_same_state, checkpoints_of
from model_helpers import Case


def test_hash_leaves_checkpoints_alone(tiny: Case, tmp_path: Path) -> None:
    settings = ["unlearn.loops=60", "checkpoint.every_loops=3", "checkpoint.keep=99"]
    plain, hashed = tmp_path / "plain", tmp_path / "hashed"
    tiny.run(plain, *settings, "relearn.passes=0")
    tiny.run(hashed, *settings, "relearn.passes=0", "output.hash_every_loops=1")
    assert checkpoints_of(hashed) == checkpoints_of(plain) == list(range(3, 61, 3))
    for loops in checkpoints_of(plain):
        assert_same_state(plain, hashed, loops)
