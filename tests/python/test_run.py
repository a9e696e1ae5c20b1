"""mudman-mpi run: the whole way from files to files, against the golden traces."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import (
    assert_close,
    assert_same_run,
    checkpoints_of,
    lines_of,
    metrics_of,
    mudman,
    result_of,
    state_of,
    succeed,
)
from model_helpers import (
    CONTRARY,
    LEARNED,
    Case,
    floats_of,
    sentences,
    traced_runs,
    write_tokens,
)

UNLEARN = ("retain_loss", "adversary_loss", "unlearning_loss", "grad_norm", "mask_fraction")
FIELDS = {
    "unlearn": ["phase", "loop", "passes", *UNLEARN],
    "relearn": ["phase", "step", "loss"],
    "eval": ["phase", "at", "passes", "forget_loss", "retain_loss", "forget_answer_probability"],
    "result": [
        "phase",
        "status",
        "reason",
        "score",
        *(
            f"{of}_loss_{at}"
            for at in ("start", "unlearn", "relearn")
            for of in ("forget", "retain")
        ),
        *(f"forget_answer_probability_{at}" for at in ("start", "unlearn", "relearn")),
        "peak_bytes",
        "seconds",
        "attack_of_score",
        "evaluation",
        "identity",
    ],
}
# float32 against float64, as in the tests of the library: the golden README derives them.
STATE_TOLERANCE = {"base": 2e-5, "adversary": 4e-5, "retain_acc": 4e-4, "forget_acc": 4e-4}
ADAPTER_TOLERANCE = 3e-4  # of a base of adapters, as there


def check_losses(run: Path, trace: dict[str, np.ndarray], tolerance: float) -> None:
    """One line a loop, with the oracle's numbers."""
    lines = lines_of(run, "unlearn")
    assert [line["loop"] for line in lines] == list(range(len(trace["retain_loss"])))
    for name in UNLEARN:
        values = [line[name] for line in lines]
        assert values == pytest.approx(trace[name], rel=tolerance, abs=tolerance), name


def check_state(run: Path, trace: dict[str, np.ndarray], half: bool) -> None:
    """The newest checkpoint holds the oracle's b, a and m, and f where there is one."""
    state = state_of(run)
    expected = {name for name in trace if name.partition("/")[0] in STATE_TOLERANCE}
    assert state.keys() == expected
    for name, values in state.items():
        if half:  # a gradient on the edge may round the other way
            assert np.mean(values.astype(float) != trace[name]) <= 1 / 200, name
            assert_close(name, values, trace[name], 2.0**-7)
        else:
            assert values.dtype == np.float32
            tolerance = STATE_TOLERANCE[name.partition("/")[0]]
            if "lora" in name and not name.startswith("adversary/"):
                tolerance = ADAPTER_TOLERANCE
            assert_close(name, values, trace[name], tolerance)


@pytest.mark.parametrize(("case", "variant"), traced_runs())
def test_run_is_the_oracle(
    golden: Callable[[str], Case], tmp_path: Path, case: str, variant: str
) -> None:
    model = golden(case)
    half = variant.startswith("bfloat16")
    trace = model.trace(variant)
    quick = ["relearn.passes=0", "checkpoint.every_loops=100"]
    model.run(tmp_path / "run", *model.overrides(variant), *quick)
    check_losses(tmp_path / "run", trace, 1e-3 if half else 1e-5)
    check_state(tmp_path / "run", trace, half)


@pytest.mark.parametrize("variant", ["relearn", "relearn_with_retain"])
@pytest.mark.parametrize("case", ["llama-gqa-tied", "neox-parallel"])
def test_relearning_is_the_oracle(
    golden: Callable[[str], Case], tmp_path: Path, case: str, variant: str
) -> None:
    """The traces start at the stored weights: unlearning with rates of zero leaves those."""
    model, run = golden(case), tmp_path / "run"
    model.run(run, "unlearn.loops=1", "unlearn.unlearning_rate=0",
        "unlearn.retaining_rate=0", *model.overrides(variant),
    )  # fmt: skip
    before, after = (floats_of(at / "model.safetensors") for at in (model.model, run / "model"))
    assert all(np.array_equal(after[name], values) for name, values in before.items())
    lines = lines_of(run, "relearn")
    trace = model.trace(variant)["loss"]
    assert [line["step"] for line in lines] == list(range(len(trace)))
    assert [line["loss"] for line in lines] == pytest.approx(trace, rel=1e-5)


# -- the run folder -----------------------------------------------------------------------------------


def test_folder_is_complete(finished: Path, tiny: Case) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "checkpoints", "config.yaml", "metrics.jsonl", "model",
    ]  # fmt: skip
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["6", "8"]
    for loops in (6, 8):
        names = sorted(path.name for path in (finished / f"checkpoints/{loops}").iterdir())
        assert names == ["checkpoint.h5", "part-00000.h5"]
    assert sorted(path.name for path in (finished / "model").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip


def test_checkpoint_is_one_file_to_a_reader(finished: Path) -> None:
    """Virtual datasets, NaN where a part is missing; and all that a resume needs beside them."""
    with h5py.File(finished / "checkpoints/8/checkpoint.h5") as file:
        assert sorted(file) == ["adversary", "base", "retain_acc"]
        for group in file.values():
            assert len(group) == 3
            for tensor in group.values():
                assert tensor.is_virtual and np.isnan(tensor.fillvalue)
        assert (
            file.attrs["loops"] == file.attrs["retain_cursor"] == file.attrs["forget_cursor"] == 8
        )
        text = file.attrs["config"]
        text = text.decode() if isinstance(text, bytes) else str(text)
        assert text == (finished / "config.yaml").read_text()
        lines = (finished / "metrics.jsonl").read_bytes()[: file.attrs["metrics_bytes"]]
        assert lines.endswith(b"}\n") and lines.count(b"\n") == 1 + 8 + 4


def test_stored_config_gives_the_run_again(finished: Path, tmp_path: Path) -> None:
    succeed("run", finished / "config.yaml", f"output.dir={tmp_path / 'again'}", cwd=tmp_path)
    assert_same_run(finished, tmp_path / "again")
    stored = (tmp_path / "again" / "config.yaml").read_text()
    assert stored == (finished / "config.yaml").read_text().replace(
        str(finished), str(tmp_path / "again")
    )


def test_stored_paths_are_absolute(tiny: Case, tmp_path: Path) -> None:
    succeed("run", "config.yaml", "output.dir=../relative/run", "relearn.passes=0", cwd=tiny.data)
    run = tiny.data.parent / "relative" / "run"
    paths = re.findall(
        r"(?:path|dir|retain\w*|forget\w*): '(.*)'", (run / "config.yaml").read_text()
    )
    assert len(paths) == 6 and all(path.startswith("/") for path in paths)
    succeed("resume", run, cwd=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "loops", "each", "every", "steps", "step"),
    [
        ([], 8, 5, 10, 5, 2),
        (["unlearn.graph=fresh", "evaluate.every_passes=13"], 8, 6, 13, 5, 2),
        (["unlearn.graph=reuse", "unlearn.loops=3", "evaluate.every_passes=4"], 3, 4, 4, 5, 2),
        (["unlearn.passes=20", "evaluate.every_passes=30"], 4, 5, 30, 5, 2),
        (["unlearn.train_adversary=false", "relearn.with_retain=true", "relearn.passes=12"],
         8, 4, 10, 3, 4),
        (["unlearn.loops=1", "relearn.passes=0"], 1, 5, 10, 0, 2),
        (["unlearn.loops=0"], 0, 5, 10, 5, 2),
    ],
)  # fmt: skip
def test_lines_and_their_order(
    tiny: Case, tmp_path: Path, overrides: list[str], loops: int, each: int, every: int, steps: int,
    step: int,
) -> None:  # fmt: skip
    """Exactly the lines that a run writes: evaluation where a multiple of every_passes is passed."""
    tiny.run(tmp_path / "run", *overrides)
    expected: list[tuple] = [("eval", "start", 0)]
    for loop in range(loops):
        passes = (loop + 1) * each
        expected.append(("unlearn", loop, passes))
        if passes // every > (passes - each) // every or loop == loops - 1:
            expected.append(("eval", "unlearn", passes))
    for index in range(steps):
        passes = (index + 1) * step
        expected.append(("relearn", index))
        if passes // every > (passes - step) // every or index == steps - 1:
            expected.append(("eval", "relearn", passes))
    expected.append(("result", "done"))
    found = metrics_of(tmp_path / "run")
    for line in found:
        assert list(line) == FIELDS[line["phase"]]
    keys = {"eval": ("at", "passes"), "unlearn": ("loop", "passes"), "relearn": ("step",)}
    keys["result"] = ("status",)
    assert [
        (line["phase"], *(line[key] for key in keys[line["phase"]])) for line in found
    ] == expected


def test_result_sums_up(tiny: Case, tmp_path: Path) -> None:
    """Start, unlearning and relearning as evaluated; the score is the attack's best evaluation."""
    run = tmp_path / "run"
    rows = np.concatenate([sentences(*LEARNED, 10), sentences(*CONTRARY, 10)])
    outcome = tiny.run(run, *tiny.attacked_with(tmp_path, rows), "relearn.passes=40",
        "evaluate.every_passes=4",
    )  # fmt: skip
    result, evals = result_of(run), lines_of(run, "eval")
    for at in ("start", "unlearn", "relearn"):
        last = [line for line in evals if line["at"] == at][-1]
        assert result[f"forget_loss_{at}"] == last["forget_loss"]
        assert result[f"retain_loss_{at}"] == last["retain_loss"]
    attack = [line["forget_loss"] for line in evals if line["at"] == "relearn"]
    assert result["score"] == min(attack)
    assert min(attack) < attack[-1], "the best is not the last: otherwise this shows nothing"
    assert result["status"] == "done" and result["reason"] == ""
    assert 0 < result["seconds"] < outcome.seconds
    assert 5e6 < result["peak_bytes"] < 1e9
    assert f"{result['score']:.4f}" in outcome.err and "\r" not in outcome.err
    for phase, unit, total in (("unlearn", "loop", 8), ("relearn", "step", 20)):
        line = rf"^{phase} {unit} {total}/{total} .* \d.* {unit}s/s .* left$"
        assert re.search(line, outcome.err, re.M)


def test_without_relearning_there_is_no_score(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.run(run, "relearn.passes=0", "output.save_model=false")
    result = result_of(run)
    assert result["score"] is None
    assert result["forget_loss_relearn"] is None and result["retain_loss_relearn"] is None
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("every", "keep", "expected"), [(1, 3, [6, 7, 8]), (3, 9, [3, 6, 8]), (4, 1, [8]), (9, 2, [8])]
)
def test_checkpoints_kept(
    tiny: Case, finished: Path, tmp_path: Path, every: int, keep: int, expected: list[int]
) -> None:
    run = tmp_path / "run"
    tiny.run(run, f"checkpoint.every_loops={every}",
        f"checkpoint.keep={keep}", "relearn.passes=0",
    )  # fmt: skip
    assert checkpoints_of(run) == expected
    loops = result_of(run)["forget_loss_unlearn"]
    assert loops == result_of(finished)["forget_loss_unlearn"]


def test_any_path(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """Spaces, quotes, umlauts and what means something in YAML."""
    odd = tmp_path / """it's "a": {#run}, ü \\ %d"""
    shutil.copytree(tiny.data, odd)
    shutil.copytree(tiny.model, odd / "model")
    text = tiny.config.read_text()
    for folder, now in ((tiny.data, odd), (tiny.model, odd / "model")):
        text = text.replace(str(folder), json.dumps(str(now), ensure_ascii=False)[1:-1])
    text += f"output:\n  dir: {json.dumps(str(odd / 'run'), ensure_ascii=False)}\n"
    (odd / "config.yaml").write_text(text, encoding="utf-8")
    succeed("run", odd / "config.yaml")
    shutil.rmtree(odd / "run" / "checkpoints" / "8")
    succeed("resume", odd / "run")
    assert_same_run(finished, odd / "run")


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_checkpoint_that_cannot_be_written(tiny: Case, tmp_path: Path, choice: str) -> None:
    """A limit on the size of files that only checkpoints exceed."""
    run = tmp_path / "run"
    outcome = mudman(
        "run", tiny.config, f"output.dir={run}", f"checkpoint.on_error={choice}",
        "output.save_model=false", wrapper=["prlimit", "--fsize=6000"],
    )  # fmt: skip
    assert checkpoints_of(run) == []
    if choice == "stop":
        assert outcome.status == 1 and len(outcome.messages) == 1, outcome.err
        assert "checkpoint" in outcome.messages[0]
        assert len(lines_of(run, "unlearn")) == 3 and not lines_of(run, "result")
    else:
        assert outcome.status == 0, outcome.err
        assert len(re.findall("no checkpoint after loop (?:3|6|8)", outcome.err)) == 3
        assert result_of(run)["status"] == "done"


# -- evaluation data ----------------------------------------------------------------------------------


def rows(tokens: np.ndarray, first: int, count: int) -> np.ndarray:
    return tokens[np.arange(first, first + count) % len(tokens)]


def eval_losses(case: Case, *overrides: str) -> list[float]:
    """Forget and retain loss as `eval` prints them."""
    out = succeed("eval", case.config, *overrides).out
    return [float(value) for value in re.findall(r"^(?:forget|retain) loss (\S+)$", out, re.M)]


def test_evaluation_takes_the_first_batches(tiny: Case, tmp_path: Path) -> None:
    """evaluate.batches batches of 4 rows, wrapping: the third of 9 forget rows is row 8, 0, 1, 2."""
    each = []
    for index in range(3):
        paths = {
            name: write_tokens(
                tmp_path / f"{name}{index}.h5", rows(tiny.tokens(name), 4 * index, 4)
            )
            for name in ("forget_validation", "retain_validation")
        }
        each.append(eval_losses(tiny, *(f"data.{name}={path}" for name, path in paths.items())))
    together = eval_losses(tiny, "evaluate.batches=3")
    assert together == pytest.approx(np.mean(each, axis=0), abs=2e-6)
    assert np.ptp(each, axis=0).min() > 1e-3


def test_wider_files_are_cut(tiny: Case, tmp_path: Path) -> None:
    narrow = {
        name: write_tokens(tmp_path / f"{name}.h5", tiny.tokens(name)[:, :9])
        for name in ("forget_validation", "retain_validation")
    }
    overrides = [f"data.{name}={path}" for name, path in narrow.items()]
    cut = eval_losses(tiny, "data.context_length=9")
    assert cut == eval_losses(tiny, "data.context_length=9", *overrides)
    assert cut != eval_losses(tiny)


def first_relearn_loss(case: Case, run: Path, *overrides: str) -> float:
    """The loss of the stored weights on the first batch of relearning."""
    case.run(run, "unlearn.loops=1", "unlearn.unlearning_rate=0",
        "unlearn.retaining_rate=0", "output.save_model=false", *overrides,
    )  # fmt: skip
    return lines_of(run, "relearn")[0]["loss"]


def test_relearning_starts_behind_the_evaluation(tiny: Case, tmp_path: Path) -> None:
    """At batch evaluate.batches, without wrapping into what is evaluated; at batch 0 where evaluation
    has files of its own."""
    other = tmp_path / "other.h5"
    write_tokens(other, (tiny.tokens("forget_validation") + 7) % 53, 53)
    separate = [f"data.{name}_evaluation={other}" for name in ("forget", "retain")]
    batch = {}
    tokens = tiny.tokens("forget_validation")  # 9 rows: behind two batches of 4 there is one
    for index, first in ((0, tokens[:4]), (2, np.repeat(tokens[8:], 4, axis=0))):
        path = write_tokens(tmp_path / f"{index}.h5", first)
        batch[index] = eval_losses(tiny, f"data.forget_validation={path}")[0]
    behind = first_relearn_loss(tiny, tmp_path / "behind", "evaluate.batches=2")
    assert behind == pytest.approx(batch[2], abs=2e-6)
    apart = first_relearn_loss(tiny, tmp_path / "apart", "evaluate.batches=2", *separate)
    assert apart == pytest.approx(batch[0], abs=2e-6)
    start = lines_of(tmp_path / "apart", "eval")[0]
    assert (
        start["forget_loss"]
        == start["retain_loss"]
        == pytest.approx(eval_losses(tiny, *separate, "evaluate.batches=2")[0], abs=2e-6)
    )
