"""mudman-mpi run: the whole way from files to files, against the golden traces."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from job_helpers import (
    assert_close,
    assert_same_run,
    checkpoints_of,
    fail,
    lines_of,
    metrics_of,
    result_of,
    snapshot,
    state_of,
    succeed,
)
from model_helpers import Case, floats_of, traced_runs, write_tokens

UNLEARN = ("retain_loss", "adversary_loss", "unlearning_loss", "grad_norm", "mask_fraction")
FIELDS = {
    "unlearn": ["phase", "loop", "passes", *UNLEARN],
    "relearn": ["phase", "step", "loss"],
    "eval": ["phase", "at", "passes", "forget_loss", "retain_loss"],
    "result": [
        "phase",
        "status",
        "reason",
        "score",
        *(f"{of}_loss_{at}" for at in ("start", "unlearn", "relearn") for of in ("forget", "retain")),
        "peak_bytes",
        "seconds",
    ],
}
# float32 against float64, as in the tests of the library: the golden README derives them.
STATE_TOLERANCE = {"base": 5e-6, "adversary": 1e-5, "retain_acc": 1e-4}


def check_losses(run: Path, trace: dict[str, np.ndarray], tolerance: float) -> None:
    """One line a loop, with the oracle's numbers."""
    lines = lines_of(run, "unlearn")
    assert [line["loop"] for line in lines] == list(range(len(trace["retain_loss"])))
    for name in UNLEARN:
        values = [line[name] for line in lines]
        assert values == pytest.approx(trace[name], rel=tolerance, abs=tolerance), name


def check_state(run: Path, trace: dict[str, np.ndarray], half: bool) -> None:
    """The newest checkpoint holds the oracle's b, a and m."""
    state = state_of(run)
    expected = {name for name in trace if name.partition("/")[0] in STATE_TOLERANCE}
    assert state.keys() == expected
    for name, values in state.items():
        if half:  # a gradient on the edge may round the other way
            assert np.mean(values.astype(float) != trace[name]) <= 1 / 200, name
            assert_close(name, values, trace[name], 2.0**-7)
        else:
            assert values.dtype == np.float32
            assert_close(name, values, trace[name], STATE_TOLERANCE[name.partition("/")[0]])


@pytest.mark.parametrize(("case", "variant"), traced_runs())
def test_run_is_the_oracle(
    golden: Callable[[str], Case], tmp_path: Path, case: str, variant: str
) -> None:
    model = golden(case)
    half = variant.startswith("bfloat16")
    trace = model.trace(variant)
    succeed(
        "run", model.config, *model.overrides(variant), f"output.dir={tmp_path / 'run'}",
        "relearn.passes=0", "checkpoint.every_loops=100",
    )  # fmt: skip
    check_losses(tmp_path / "run", trace, 1e-3 if half else 1e-5)
    check_state(tmp_path / "run", trace, half)


@pytest.mark.parametrize("variant", ["relearn", "relearn_with_retain"])
@pytest.mark.parametrize("case", ["llama-gqa-tied", "neox-parallel"])
def test_relearning_is_the_oracle(
    golden: Callable[[str], Case], tmp_path: Path, case: str, variant: str
) -> None:
    """The traces start at the stored weights: unlearning with rates of zero leaves those."""
    model, run = golden(case), tmp_path / "run"
    succeed(
        "run", model.config, f"output.dir={run}", "unlearn.loops=1", "unlearn.unlearning_rate=0",
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
    paths = re.findall(r"(?:path|dir|retain\w*|forget\w*): '(.*)'", (run / "config.yaml").read_text())
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
    ],
)  # fmt: skip
def test_lines_and_their_order(
    tiny: Case, tmp_path: Path, overrides: list[str], loops: int, each: int, every: int, steps: int,
    step: int,
) -> None:  # fmt: skip
    """Exactly the lines that DESIGN names: evaluation where a multiple of every_passes is passed."""
    succeed("run", tiny.config, f"output.dir={tmp_path / 'run'}", *overrides)
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
    outcome = succeed(
        "run", tiny.config, f"output.dir={run}", "relearn.passes=60", "relearn.lr=0.5",
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


def test_without_relearning_there_is_no_score(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("run", tiny.config, f"output.dir={run}", "relearn.passes=0", "output.save_model=false")
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
    succeed(
        "run", tiny.config, f"output.dir={run}", f"checkpoint.every_loops={every}",
        f"checkpoint.keep={keep}", "relearn.passes=0",
    )  # fmt: skip
    assert checkpoints_of(run) == expected
    loops = result_of(run)["forget_loss_unlearn"]
    assert loops == result_of(finished)["forget_loss_unlearn"]


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
            name: write_tokens(tmp_path / f"{name}{index}.h5", rows(tiny.tokens(name), 4 * index, 4))
            for name in ("forget_validation", "retain_validation")
        }
        each.append(eval_losses(tiny, *(f"data.{name}={path}" for name, path in paths.items())))
    together = eval_losses(tiny, "evaluate.batches=3")
    assert together == pytest.approx(np.mean(each, axis=0), abs=2e-6)
    assert np.ptp(each, axis=0).min() > 1e-3


def first_relearn_loss(case: Case, run: Path, *overrides: str) -> float:
    """The loss of the stored weights on the first batch of relearning."""
    succeed(
        "run", case.config, f"output.dir={run}", "unlearn.loops=1", "unlearn.unlearning_rate=0",
        "unlearn.retaining_rate=0", "output.save_model=false", *overrides,
    )  # fmt: skip
    return lines_of(run, "relearn")[0]["loss"]


def test_relearning_starts_behind_the_evaluation(tiny: Case, tmp_path: Path) -> None:
    """At batch evaluate.batches; at batch 0 where evaluation has files of its own."""
    other = tmp_path / "other.h5"
    write_tokens(other, (tiny.tokens("forget_validation") + 7) % 53, 53)
    separate = [f"data.{name}_evaluation={other}" for name in ("forget", "retain")]
    batch = {}
    for index in (0, 2):
        path = write_tokens(tmp_path / f"{index}.h5", rows(tiny.tokens("forget_validation"), 4 * index, 4))
        batch[index] = eval_losses(tiny, f"data.forget_validation={path}")[0]
    behind = first_relearn_loss(tiny, tmp_path / "behind", "evaluate.batches=2")
    assert behind == pytest.approx(batch[2], abs=2e-6)
    apart = first_relearn_loss(tiny, tmp_path / "apart", "evaluate.batches=2", *separate)
    assert apart == pytest.approx(batch[0], abs=2e-6)
    start = lines_of(tmp_path / "apart", "eval")[0]
    assert start["forget_loss"] == start["retain_loss"] == pytest.approx(
        eval_losses(tiny, *separate, "evaluate.batches=2")[0], abs=2e-6
    )


# -- rejection ----------------------------------------------------------------------------------------


def first_excess(run: Path) -> tuple[int, float]:
    """A loop after which the retain loss is higher than ever, and a budget that it alone exceeds."""
    start, *after = [line["retain_loss"] for line in lines_of(run, "eval") if line["at"] != "relearn"]
    for loop in range(2, len(after)):
        before = max(start, *after[:loop])
        if after[loop] > before:
            return loop, (before + after[loop]) / 2 - start
    raise AssertionError("the retain loss never rises")


@pytest.mark.parametrize("ranks", [1, 3])
def test_budget_rejects(tiny: Case, tmp_path: Path, ranks: int) -> None:
    free, run = tmp_path / "free", tmp_path / "run"
    settings = ["unlearn.unlearning_rate=2", "evaluate.every_passes=5", "checkpoint.every_loops=1"]
    succeed("run", tiny.config, f"output.dir={free}", *settings, "checkpoint.keep=9", ranks=ranks)
    loop, budget = first_excess(free)
    message = fail(
        4, "run", tiny.config, f"output.dir={run}", *settings, f"unlearn.retain_loss_budget={budget}",
        ranks=ranks,
    )  # fmt: skip
    result = result_of(run)
    assert result["status"] == "rejected" and f"loop {loop} " in result["reason"]
    assert result["reason"] in message and "retain loss" in message and "budget" in message
    assert result["score"] is None and result["forget_loss_relearn"] is None
    evals = lines_of(run, "eval")
    assert evals == lines_of(free, "eval")[: loop + 2]
    assert result["retain_loss_unlearn"] == evals[-1]["retain_loss"]
    assert len(lines_of(run, "unlearn")) == loop + 1 and not lines_of(run, "relearn")
    assert not (run / "model").exists()
    assert checkpoints_of(run) == [loop - 1, loop], "of the loops before"
    for loops in (loop - 1, loop):
        succeed("inspect", run / "checkpoints" / str(loops))
        for name, values in state_of(run, loops).items():
            assert np.array_equal(values, state_of(free, loops)[name])


DIVERGES = [
    "unlearn.target_modules=[v_proj,o_proj]",
    "unlearn.normalization=none",
    "unlearn.adv_lr=1e6",
    "checkpoint.every_loops=1",
]


@pytest.mark.parametrize("ranks", [1, 3])
def test_not_finite_rejects(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """The run ends at loop 1, which writes nothing: the checkpoint of loop 0's end stays as it was."""
    run, short = tmp_path / "run", tmp_path / "short"
    settings = [*DIVERGES, "evaluate.every_passes=1000"]
    message = fail(4, "run", tiny.config, *settings, f"output.dir={run}", ranks=ranks)
    assert re.search(r"loop 1: .*not finite", message)
    lines, result = lines_of(run, "unlearn"), result_of(run)
    assert len(lines) == 2
    assert all(lines[0][name] is not None for name in UNLEARN)
    assert any(lines[1][name] is None for name in UNLEARN), "not finite is null"
    assert result["status"] == "rejected" and re.search("loop 1: .*not finite", result["reason"])
    assert result["score"] is None and not (run / "model").exists()
    assert checkpoints_of(run) == [1]
    assert all(np.isfinite(values).all() for values in state_of(run).values())
    tame = [setting for setting in DIVERGES if "adv_lr" not in setting]
    succeed("run", tiny.config, *tame, f"output.dir={short}", "unlearn.loops=1", ranks=ranks)
    for name, values in state_of(run).items():
        if name.startswith("retain_acc"):  # the first retain step comes before the adversary's
            assert np.array_equal(values, state_of(short)[name])


def test_evaluation_that_is_not_finite_rejects(tiny: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    message = fail(
        4, "run", tiny.config, *DIVERGES, "evaluate.every_passes=5", f"output.dir={run}"
    )
    assert "evaluation" in message and "loop 0" in message and "not finite" in message
    assert lines_of(run, "eval")[-1]["retain_loss"] is None
    assert result_of(run)["status"] == "rejected" and checkpoints_of(run) == []


def test_relearning_that_diverges_rejects(tiny: Case, tmp_path: Path) -> None:
    """The unlearned model was made before, and stays."""
    run = tmp_path / "run"
    message = fail(
        4, "run", tiny.config, f"output.dir={run}", "relearn.lr=5", "relearn.passes=60"
    )
    last = lines_of(run, "relearn")[-1]
    assert last["loss"] is None and last["step"] < 29 and f"step {last['step']}" in message
    assert result_of(run)["status"] == "rejected" and result_of(run)["score"] is None
    assert (run / "model" / "model.safetensors").is_file() and checkpoints_of(run)[-1] == 8


def test_rejected_folder_is_used(tiny: Case, tmp_path: Path) -> None:
    """After a rejection the folder keeps its record: a second run into it is refused."""
    run = tmp_path / "run"
    fail(4, "run", tiny.config, *DIVERGES, f"output.dir={run}")
    before = snapshot(run)
    assert str(run) in fail(2, "run", tiny.config, f"output.dir={run}")
    assert snapshot(run) == before
