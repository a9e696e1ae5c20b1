"""The real run in small: a pre-trained model unlearns a theme and keeps the rest.

Needs stories260K and the stories (MUDMAN_TEST_DATA); docs/experiments.md has the whole run's figures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from job_helpers import ROOT, metrics_of, result_of, succeed

THEME = (
    r"(?i)\b(animals?|dogs?|pupp(y|ies)|cats?|kittens?|birds?|bunn(y|ies)|rabbits?|bears?|fox(es)?|fish"
    r"|frogs?|ducks?|lions?|mouse|mice|monkeys?|squirrels?|owls?)\b"
)
FEWER = ["unlearn.passes=100", "relearn.passes=24", "evaluate.every_passes=50", "evaluate.batches=2"]


def prepare(data: Path, choice: str, prefix: Path) -> None:
    """Token files of the stories that match the theme, or of the others."""
    command = [sys.executable, ROOT / "tools/prepare_data.py", data / "retain_english.jsonl"]
    command += ["--where", "source=tinystories", f"--{choice}", THEME, "--context", "256"]
    command += ["--tokenizer", data / "models/stories260K", "--output", prefix]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def run(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (real_data / "models/stories260K").is_dir():
        pytest.skip("no stories260K")
    work = tmp_path_factory.mktemp("stories")
    prepare(real_data, "match", work / "data/stories/animals")
    prepare(real_data, "exclude", work / "data/stories/other")
    (work / "models").symlink_to(real_data / "models")
    succeed("run", ROOT / "configs/stories260K/animals.yaml", *FEWER, cwd=work, limit=240)
    return work / "runs/stories260K/animals"


def test_theme_is_forgotten_and_the_rest_kept(run: Path) -> None:
    result = result_of(run)
    assert result["status"] == "done"
    forgot = result["forget_loss_unlearn"] - result["forget_loss_start"]
    cost = result["retain_loss_unlearn"] - result["retain_loss_start"]
    assert forgot > 0.01
    assert cost < 0.05
    assert forgot > cost


def test_exported_model_has_the_losses_of_the_run(run: Path) -> None:
    last = [m for m in metrics_of(run) if m.get("at") == "unlearn"][-1]
    work = run.parents[2]
    out = succeed(
        "eval", ROOT / "configs/stories260K/animals.yaml", f"model.path={run}/model", *FEWER, cwd=work
    ).out
    losses = dict(line.rsplit(" ", 1) for line in out.splitlines())
    assert abs(float(losses["forget loss"]) - last["forget_loss"]) < 1e-5
    assert abs(float(losses["retain loss"]) - last["retain_loss"]) < 1e-5
