"""Relearning attacks: a list of them in one run, AdamW, LoRA, and the worst of all as the score."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from job_helpers import fail, lines_of, metrics_of, result_of, succeed
from model_helpers import (
    LEARNED,
    OTHER,
    Case,
    changed_case,
    floats_of,
    random_case,
    random_llama,
    sentences,
    with_overflow,
)
from test_cli import planned

# Attacks that differ in every key, and what makes the same attack the only one of a run.
ATTACKS: dict[str, dict[str, object]] = {
    "slow": {"lr": 0.02},
    "fast": {"lr": 0.2, "passes": 30},
    "both": {"lr": 0.2, "with_retain": True, "passes": 12},
    "adamw": {"lr": 0.01, "optimizer": "adamw", "passes": 8},
    "lora": {"lr": 0.05, "lora_rank": 2, "passes": 8},
    "lora-adamw": {"lr": 0.005, "lora_rank": 3, "optimizer": "adamw", "passes": 16},
}


def as_yaml(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def listed(attacks: dict[str, dict[str, object]]) -> str:
    """The override that gives these attacks."""
    each = [
        "{" + ", ".join(f"{k}: {as_yaml(v)}" for k, v in ({"name": name} | keys).items()) + "}"
        for name, keys in attacks.items()
    ]
    return f"relearn.attacks=[{', '.join(each)}]"


def alone(keys: dict[str, object]) -> list[str]:
    return [f"relearn.{key}={as_yaml(value)}" for key, value in keys.items()]


def of_attack(run: Path, name: str | None) -> list[dict]:
    """The lines of an attack without its name, or of the only one."""
    lines = [line for line in metrics_of(run) if "relearn" in (line["phase"], line.get("at"))]
    assert all(("attack" in line) == (name is not None) for line in lines)
    return [
        {key: value for key, value in line.items() if key != "attack"}
        for line in lines
        if line.get("attack") == name
    ]


def end_of(lines: Sequence[dict]) -> dict:
    return [line for line in lines if line["phase"] == "eval"][-1]


@pytest.mark.parametrize(("ranks", "state"), [(1, "float32"), (3, "float32"), (1, "bfloat16")])
def test_each_attack_is_the_run_that_has_it_alone(
    tiny: Case, tmp_path: Path, ranks: int, state: str
) -> None:
    """Digit by digit, whatever came before it; the score is the worst, and so is the end."""
    common = ["evaluate.every_passes=4", f"model.state_dtype={state}", "output.save_model=false"]
    run = tmp_path / "all"
    outcome = tiny.run(run, *common, listed(ATTACKS), ranks=ranks)
    result, ends, scores = result_of(run), [], []
    for name, keys in ATTACKS.items():
        single = tmp_path / name
        tiny.run(single, *common, *alone(keys), ranks=ranks)
        lines = of_attack(run, name)
        assert lines == of_attack(single, None)
        score = result_of(single)["score"]
        assert result[f"score_{name}"] == score
        assert score == min(line["forget_loss"] for line in lines if line["phase"] == "eval")
        assert re.search(rf"^{name} +{score:.4f}  lowest forget loss", outcome.err, re.M)
        ends.append(end_of(lines))
        scores.append(score)
    assert result["score"] == min(scores) and len(set(scores)) == len(scores)
    worst = min(ends, key=lambda line: line["forget_loss"])
    assert result["forget_loss_relearn"] == worst["forget_loss"]
    assert result["retain_loss_relearn"] == worst["retain_loss"]
    assert worst not in (ends[0], ends[-1]), "neither the first nor the last: else it shows nothing"


def test_lines_and_result(tiny: Case, tmp_path: Path) -> None:
    """The name follows the phase; steps and passes start again; the list is kept as it was given."""
    run = tmp_path / "run"
    tiny.run(run, "relearn.passes=4", "evaluate.every_passes=2",
        listed({"one": {}, "two": {"lr": 0.2}}),
    )  # fmt: skip
    lines = [line for line in metrics_of(run) if "attack" in line]
    keys = {
        "relearn": ["phase", "attack", "step", "loss"],
        "eval": [
            "phase", "at", "attack", "passes", "forget_loss", "retain_loss",
            "forget_answer_probability",
        ],
    }  # fmt: skip
    assert all(list(line) == keys[line["phase"]] for line in lines)
    one = [("relearn", 0), ("eval", 2), ("relearn", 1), ("eval", 4)]
    found = [(line["attack"], line["phase"], line.get("step", line.get("passes"))) for line in lines]
    assert found == [(name, *at) for name in ("one", "two") for at in one]
    fields = list(result_of(run))
    at = fields.index("score")
    assert fields[at : at + 4] == ["score", "score_one", "score_two", "forget_loss_start"]
    stored = (run / "config.yaml").read_text()
    assert "attacks: [{name: 'one'},\n      {name: 'two', lr: 0.2}]" in stored


def test_lora_keeps_what_it_does_not_adapt(golden: Callable[[str], Case], tmp_path: Path) -> None:
    """A rank as large as a matrix may change it more than a small one; the seed chooses A."""
    case, every = golden("neox-parallel"), "evaluate.every_passes=2"
    losses = {}
    for rank, seed in ((1, 42), (1, 43), (8, 42)):
        run = tmp_path / f"{rank}-{seed}"
        case.run(run, every, "relearn.lr=0.02", f"relearn.lora_rank={rank}", f"seed={seed}")
        losses[rank, seed] = [line["loss"] for line in lines_of(run, "relearn")]
    first = [each[0] for each in losses.values()]
    assert len(set(first)) == 1, "the adapters change nothing at first"
    assert len({tuple(each) for each in losses.values()}) == 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_attacks_on_a_base_of_adapters(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """Adapters of the attack's own see a model, merged; one on all parameters trains the base's too."""
    kinds = {"all": {"lr": 0.05, "passes": 8}, "lora": ATTACKS["lora"]}
    adapted = ["unlearn.lora_rank=3", "unlearn.train_adversary=false"]
    tiny.run(tmp_path / "adapted", listed(kinds), *adapted, ranks=ranks)
    model = f"model.path={tmp_path / 'adapted' / 'model'}"
    tiny.run(tmp_path / "merged", listed(kinds), model, "unlearn.loops=0", ranks=ranks)
    runs = [tmp_path / "adapted", tmp_path / "merged"]
    lora = [of_attack(run, "lora") for run in runs]
    assert lora[0] == lora[1]
    both = [[line["loss"] for line in of_attack(run, "all") if "loss" in line] for run in runs]
    assert both[0][0] == both[1][0] and both[0][1:] != both[1][1:]


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.2), ("adamw", 0.05)])
def test_lora_where_ranks_have_no_rows(tmp_path: Path, optimizer: str, lr: float) -> None:
    """16 rows on 5 ranks are 4, 4, 4, 4 and none."""
    model = random_llama(tmp_path / "model", width=16, mlp=22, layers=2, vocab=60)
    config = random_case(tmp_path, model, batch=5, context=12, unlearn__loops=0)
    attack = ["relearn.passes=8", "relearn.lora_rank=2", f"relearn.lr={lr}",
              f"relearn.optimizer={optimizer}", "output.save_model=false"]  # fmt: skip
    losses = []
    for ranks in (1, 5):
        succeed("run", config, f"output.dir={tmp_path / str(ranks)}", *attack, ranks=ranks)
        losses.append([line["loss"] for line in lines_of(tmp_path / str(ranks), "relearn")])
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
    still = result_of(tmp_path / "1")["forget_loss_start"]
    assert abs(result_of(tmp_path / "1")["forget_loss_relearn"] - still) > 0.02


@pytest.mark.parametrize(("state", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("variant", ["relearn_adamw", "relearn_lora"])
def test_attack_is_the_oracle(
    tiny: Case, tmp_path: Path, variant: str, state: str, tolerance: float
) -> None:
    """The traces start at the stored weights: unlearning with rates of zero leaves those.

    In bfloat16 it rounds the ones it trains; AdamW and LoRA work in float32 all the same.
    """
    run = tmp_path / "run"
    tiny.run(run, "unlearn.loops=1", "unlearn.unlearning_rate=0", "unlearn.retaining_rate=0",
        f"model.state_dtype={state}", *tiny.overrides(variant), ranks=2,
    )  # fmt: skip
    losses = [line["loss"] for line in lines_of(run, "relearn")]
    assert losses == pytest.approx(tiny.trace(variant)["loss"], rel=tolerance)


def test_exported_model_is_that_before_the_attacks(
    tiny: Case, finished: Path, tmp_path: Path
) -> None:
    tiny.run(tmp_path / "run", listed(ATTACKS))
    before, after = (floats_of(at / "model/model.safetensors") for at in (finished, tmp_path / "run"))
    assert all(np.array_equal(after[name], values) for name, values in before.items())


def test_resume_relearns_with_other_attacks(tiny: Case, tmp_path: Path) -> None:
    """relearn.attacks may change on a resume, and relearn.lr is that of attacks without one."""
    run, other = tmp_path / "run", tmp_path / "other"
    tiny.run(run, listed({"a": {}, "b": {"lr": 0.2}}))
    tiny.run(other, listed({"a": {"lr": 0.3}, "b": {"lr": 0.2}}))
    succeed("resume", run, "relearn.lr=0.3")
    for name in ("a", "b"):
        assert of_attack(run, name) == of_attack(other, name)


# -- divergence ---------------------------------------------------------------------------------------


WRECK = 8  # the step whose batch overflows


def wrecking(case: Case, folder: Path) -> list[str]:
    """An attack that learns fast enough is far ahead when a batch wrecks it."""
    rows = with_overflow(sentences(*LEARNED), WRECK)
    return [*case.attacked_with(folder, rows), "evaluate.every_passes=2"]


@pytest.mark.parametrize("first", [True, False])
def test_one_diverged_attack_does_not_count(
    overflowing: Case, tmp_path: Path, first: bool
) -> None:
    """It has no score; the others do, and start where they would without it."""
    run, single = tmp_path / "run", tmp_path / "single"
    wild = {"wild": {"lr": 0.1, "passes": 2 * WRECK + 4}}
    tame = {"tame": {"lr": 0.001, "passes": 2 * WRECK}}
    settings = wrecking(overflowing, tmp_path)
    outcome = overflowing.run(run, *settings, listed(wild | tame if first else tame | wild))
    overflowing.run(single, *settings, *alone(tame["tame"]))
    result, expected = result_of(run), result_of(single)
    assert result["status"] == "done" and result["score_wild"] is None
    assert of_attack(run, "tame") == of_attack(single, None)
    for key in ("score", "forget_loss_relearn", "retain_loss_relearn"):
        assert result[key] == expected[key]
    last = [line for line in of_attack(run, "wild") if line["phase"] == "relearn"][-1]
    assert last["loss"] is None and last["step"] == WRECK
    low = [line["forget_loss"] for line in of_attack(run, "wild") if line["phase"] == "eval"][-1]
    assert low < 1 < result["score"], "it was ahead: otherwise this shows nothing"
    assert result["diverged_wild"] == f"the loss is not finite at step {WRECK}"
    assert "diverged_tame" not in result
    assert f"attack wild diverged: {result['diverged_wild']}" in outcome.err
    assert re.search(r"^wild +diverged$", outcome.err, re.M)


def test_all_diverged_rejects(overflowing: Case, tmp_path: Path) -> None:
    run, wild = tmp_path / "run", {"lr": 0.1, "passes": 60}
    attacks = listed({"wild": wild, "wilder": wild | {"lr": 0.2}})
    message = overflowing.rejected(run, *wrecking(overflowing, tmp_path), attacks)
    assert "every attack" in message and "wilder" in message
    result = result_of(run)
    assert result["status"] == "rejected"
    assert result["score"] is result["score_wild"] is result["score_wilder"] is None


@pytest.mark.parametrize("ranks", [1, 3])
def test_steps_that_overflow_wreck(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """The weights are finite, but no norm's sum of squares is."""
    every = {2: "the evaluation after 2 passes is not finite", 60: "the loss is not finite at step 1"}
    for passes, expected in every.items():
        run = tmp_path / str(passes)
        settings = ["relearn.lr=1e9", f"relearn.passes={passes}", "evaluate.every_passes=100"]
        message = tiny.rejected(run, *settings, ranks=ranks)
        assert f"relearning diverged: {expected}" in message
        assert result_of(run)["score"] is None


@pytest.mark.parametrize("attack", [{}, {"optimizer": "adamw"}, {"lora_rank": 2}])
def test_gradient_of_zeros_is_a_wreck(
    golden: Callable[[str], Case], tmp_path: Path, attack: dict[str, object]
) -> None:
    """With a head and a norm before it of zeros each loss is log V, and nothing is learned."""
    changes = {name: (..., 0) for name in ("lm_head.weight", "model.norm.weight")}
    case, run = changed_case(golden("llama3-untied"), tmp_path, changes), tmp_path / "run"
    message = case.rejected(run, "unlearn.loops=0", *alone(attack))
    assert "the gradient is zero everywhere, though the loss is not, at step 0" in message
    assert lines_of(run, "relearn")[-1]["loss"] == pytest.approx(np.log(47))
    assert result_of(run)["score"] is None


def test_attack_that_ends_far_above_its_start_diverged(tiny: Case, tmp_path: Path) -> None:
    """By more than log 2: the model's perplexity has doubled."""
    run, settings = tmp_path / "run", tiny.attacked_with(tmp_path, sentences(*OTHER, 20))
    message = tiny.rejected(run, *settings, "relearn.passes=40", "relearn.lr=0.1")
    result = result_of(run)
    before, end = result["forget_loss_unlearn"], result["forget_loss_relearn"]
    assert end > before + 1
    assert f"the forget loss ends at {end:.4f}, beyond the {before:.4f} it started from" in message
    assert result["score"] is None


def test_score_above_the_loss_before_is_named(tiny: Case, tmp_path: Path) -> None:
    """An attack on other data, and a weak one: the loss only rises, by little."""
    settings = [*tiny.attacked_with(tmp_path, sentences(*OTHER, 20)), "evaluate.every_passes=100"]
    weak = {"passes": 40, "lr": 0.01}
    outcome = tiny.run(tmp_path / "one", *settings, *alone(weak))
    result = result_of(tmp_path / "one")
    assert 0.1 < result["score"] - result["forget_loss_unlearn"] < 0.6
    above = ", above the loss before the attack"
    assert f"while relearning{above}): {result['score']:.4f}" in outcome.err
    attacks = listed({"none": {}, "weak": weak})
    outcome = tiny.run(tmp_path / "list", *settings, "relearn.passes=0", attacks)
    assert re.search(rf"^weak +{result['score']:.4f} .*{above}$", outcome.err, re.M)
    assert not re.search("^none", outcome.err, re.M)
    settings = tiny.attacked_with(tmp_path, sentences(*LEARNED, 20))
    assert above not in tiny.run(tmp_path / "tame", *settings, "relearn.lr=0.1").err


def test_attack_that_breaks_the_model_is_named(tiny: Case, tmp_path: Path) -> None:
    """The forget loss falls, and the retain loss rises by more than log 2."""
    settings = tiny.attacked_with(tmp_path, sentences(*LEARNED, 20))
    attacks = listed({"hard": {"passes": 40, "lr": 0.5}, "weak": {"passes": 4, "lr": 0.001}})
    outcome = tiny.run(tmp_path / "run", *settings, "relearn.passes=0", attacks)
    result = result_of(tmp_path / "run")
    assert result["retain_loss_hard"] > result["retain_loss_unlearn"] + 0.7
    assert abs(result["retain_loss_weak"] - result["retain_loss_unlearn"]) < 0.1
    broke = ", of an attack that broke the model: try a weaker one"
    assert re.search(rf"^hard +{result['score_hard']:.4f} .*{broke}$", outcome.err, re.M)
    assert f"while relearning{broke}): {result['score']:.4f}" in outcome.err
    assert not re.search(rf"^weak .*{broke}", outcome.err, re.M)


def test_rejected_before_the_attacks(tiny: Case, tmp_path: Path) -> None:
    """The result has the same keys."""
    run = tmp_path / "run"
    tiny.rejected(run, "unlearn.unlearning_rate=30", "unlearn.retain_loss_budget=0",
        listed({"one": {}, "two": {}}),
    )  # fmt: skip
    result = result_of(run)
    assert result["score_one"] is result["score_two"] is None


# -- plan ---------------------------------------------------------------------------------------------


def test_plan_counts_the_copy_and_the_largest_attack(tmp_path: Path) -> None:
    model = random_llama(tmp_path / "model", width=64, mlp=256, layers=2, vocab=300)
    config = random_case(tmp_path, model, batch=4, context=16)

    def rows(*overrides: str, ranks: int = 1) -> dict[str, list[float]]:
        return planned(succeed("plan", config, *overrides, "--ranks", ranks).out)

    for ranks in (1, 4):
        single = rows(ranks=ranks)
        several = rows(listed({"a": {}, "b": {"lr": 1}}), ranks=ranks)
        adamw = rows("relearn.optimizer=adamw", ranks=ranks)
        lora = rows("relearn.lora_rank=4", ranks=ranks)
        mixed = {"a": {}, "b": {"lora_rank": 4}, "c": {"optimizer": "adamw"}, "d": {}}
        assert single["weights"][2] == 0
        assert several["weights"][2] == pytest.approx(several["weights"][0], rel=0.05)
        assert several["optimizer"] == single["optimizer"]
        assert adamw["optimizer"][2] == pytest.approx(3 * single["optimizer"][2], rel=5e-3)
        assert lora["gradients"][2] < single["gradients"][2]
        assert rows(listed(mixed), ranks=ranks)["optimizer"] == adamw["optimizer"]
    out = succeed("plan", config, "relearn.passes=8", listed({"a": {}, "b": {"passes": 6}})).out
    assert "relearning: 14 passes in 2 attacks\n" in out


def test_attacks_without_passes_are_left_out(tiny: Case, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.run(run, "relearn.passes=0", listed({"none": {}, "some": {"passes": 10}}))
    result = result_of(run)
    assert result["score_none"] is None and result["score"] == result_of(finished)["score"]
    assert {line["attack"] for line in metrics_of(run) if "attack" in line} == {"some"}
    tiny.run(tmp_path / "bare", "relearn.passes=0", listed({"none": {}}))
    assert result_of(tmp_path / "bare")["score"] is None


# -- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- name: a\n  - name: a", r"config\.yaml:\d+: relearn\.attacks: two attacks are called a"),
        ("- name: a\n    rate: 1", r"config\.yaml:\d+: relearn\.attacks: unknown key 'rate'"),
        ("- lr: 1", r"config\.yaml:\d+: relearn\.attacks: name is missing"),
        ("- name: a\n    lr: fast", r"config\.yaml:\d+: relearn\.attacks: lr: expected a number"),
        ("- name: a\n    passes: 10\n    with_retain: true",
         r"relearn\.attacks: passes of a is 10, not a multiple of the 4 passes of a step"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_line(tiny: Case, tmp_path: Path, text: str, expected: str) -> None:
    config = tmp_path / "config.yaml"
    settings = tiny.config.read_text()
    assert "relearn:\n" in settings
    config.write_text(settings.replace("relearn:\n", f"relearn:\n  attacks:\n  {text}\n"))
    message = fail(2, "run", config, f"output.dir={tmp_path / 'run'}")
    assert re.search(expected, message), message
    found = re.search(r"config\.yaml:(\d+)", message)
    if found:
        line = config.read_text().splitlines()[int(found[1]) - 1]
        assert line.strip(" -") in text, "the line that is wrong"
    assert not (tmp_path / "run").exists()
