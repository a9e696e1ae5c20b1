"""tools/import_study.py: the study's own config files become configs and search files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import import_study
from job_helpers import ROOT, succeed
from model_helpers import TOKEN_SETS, Case, write_questions
from search_config import Search, Variant, read_search
from yaml_reader import as_argument, read_yaml

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STUDY = """\
general_config:
  method_name: surgical_irreversible_unlearning
  target_modules: [gate_proj]
  model_id: somebody/Small-9M
  retain_set_name: kept_text
  forget_set_name: python
  unlearn_steps: 300
  batch_size: 4
  n_trials: 70
  normalize_grads: true
  retain_loss_budget: 0.05
  unlearning_loss_fn: neg_cross_entropy
  use_masking: true
  train_adversary: true
  additional_param_name: null
relearn_config: {relearn_steps: 120, relearn_lr: 3e-3}
hyperparams:
  additional_param: None
  adv_decay: [0.3, 1, false]
  adv_lr: [1.e-3, 1.e-1, true]
  fork_every_n_loops: [6, 42, false]
  retain_momentum: [0, 0.99, false]
  retaining_rate: [1.e-4, 1.e-2, true]
  unlearning_rate: [1e-7, 0.1, true]
variants:
  plain: {}
  no_masking: {use_masking: false, unlearning_rate: [0.1, 0.5, false]}
  alone: {train_adversary: false, adv_decay: [1, 1, false]}
  raw: {normalize_grads: false}
  entropy:
    unlearning_loss_fn: neg_entropy
    retain_momentum: [0, 0, false]
    additional_param_name: rep_eng_retain_lr
    square_norm: true
    additional_param: [1.e-12, 1, true]
  momentum: {additional_param_name: forget_momentum, additional_param: [0, 1, false]}
  breakers: {method_name: circuit_breakers_no_lora, adv_lr: None, retain_momentum: None}
  adapters: {method_name: surgical_irreversible_unlearning_lora, lora_rank: 8, lora_amount: 2}
  with_lora: {method_name: circuit_breakers}
"""
QUESTIONS = """\
general_config:
  target_modules: [gate_proj]
  model_id: meta/Llama-9M
  retain_set_name: kept_text
  forget_set_name: python
  unlearn_steps: 480
  allowed_mmlu_acc: 0.2873
  eval_wmdp_every: 120
hyperparams:
  adv_decay: 1
  adv_lr: 0.001
  fork_every_n_loops: 48
  retain_momentum: 0.95
  retaining_rate: [1.e-5, 1.e-3, true]
  unlearning_rate: [1.e-7, 1.e-4, true]
variants:
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(text: str, *arguments: str) -> tuple[dict[str, Any], Search]:
    """Import a text in the working directory: the run's config and the search."""
    Path("s.yaml").write_text(text)
    assert import_study.main(["s.yaml", "--output", "out/s", *arguments]) == 0
    return read_yaml(Path("out/s-run.yaml")), read_search(Path("out/s-search.yaml"))


def variant(search: Search, name: str) -> Variant:
    return next(v for v in search.variants if v.name == name)


def ends(bounds: Any) -> tuple[float, float, bool, bool]:
    return bounds.low, bounds.high, bounds.log, bounds.integer


def test_run_config(place: Path) -> None:
    config, _ = imported(STUDY)
    assert config["model"] == {"path": "models/Small-9M", "dtype": "float32"}
    assert config["data"] == {
        "retain": "data/small-9m/kept-text-train.h5",
        "forget": "data/small-9m/python-train.h5",
        "retain_validation": "data/small-9m/kept-text-validation.h5",
        "forget_validation": "data/small-9m/python-validation.h5",
        "batch_size": 4,
    }
    # Searched values are the middle of their range; defaults are left out.
    assert config["unlearn"] == {
        "passes": 300,
        "target_modules": ["gate_proj"],
        "unlearning_loss_fn": "neg_cross_entropy",
        "rate_scale": "study",
        "retain_loss_budget": 0.05,
        "adv_decay": 0.65,
        "adv_lr": 0.01,
        "fork_every_n_loops": 24,
        "retain_momentum": 0.495,
        "retaining_rate": 0.001,
        "unlearning_rate": 0.0001,
    }
    assert config["relearn"] == {"passes": 120, "lr": 0.003}


def test_search(place: Path) -> None:
    _, search = imported(STUDY)
    assert search.config == "out/s-run.yaml" and search.baseline and search.last == 30
    assert "--trials 70" in Path("out/s-search.yaml").read_text()
    names = [v.name for v in search.variants]
    assert names == [
        "plain", "no_masking", "alone", "raw", "entropy", "momentum", "breakers", "adapters",
        "with_lora",
    ]  # fmt: skip
    plain = variant(search, "plain")
    assert plain.overrides == {}
    assert {name: ends(bounds) for name, bounds in plain.parameters.items()} == {
        "unlearn.adv_decay": (0.3, 1, False, False),
        "unlearn.adv_lr": (1e-3, 0.1, True, False),
        "unlearn.fork_every_n_loops": (6, 42, False, True),
        "unlearn.retain_momentum": (0, 0.99, False, False),
        "unlearn.retaining_rate": (1e-4, 1e-2, True, False),
        "unlearn.unlearning_rate": (1e-7, 0.1, True, False),
    }


def test_variants(place: Path) -> None:
    _, search = imported(STUDY)
    rates = {"unlearn.retaining_rate", "unlearn.unlearning_rate"}
    masked = variant(search, "no_masking")
    assert masked.overrides == {"unlearn.use_masking": False}
    assert ends(masked.parameters["unlearn.unlearning_rate"]) == (0.1, 0.5, False, False)
    alone = variant(search, "alone")
    assert alone.overrides == {"unlearn.train_adversary": False}
    assert alone.parameters.keys() == rates | {"unlearn.retain_momentum"}
    assert variant(search, "raw").overrides == {"unlearn.normalization": "none"}
    entropy = variant(search, "entropy")
    assert entropy.overrides == {
        "unlearn.unlearning_loss_fn": "neg_entropy",
        "unlearn.retain_momentum": 0,
        "unlearn.square_norm": True,
    }
    assert ends(entropy.parameters["unlearn.rep_eng_retain_lr"]) == (1e-12, 1, True, False)
    assert "unlearn.retain_momentum" not in entropy.parameters
    momentum = variant(search, "momentum")
    assert ends(momentum.parameters["unlearn.forget_momentum"]) == (0, 0.999, False, False)
    breakers = variant(search, "breakers")
    assert breakers.parameters.keys() == rates
    assert breakers.overrides == {
        "unlearn.unlearning_loss_fn": "circuit_breaker",
        "unlearn.train_adversary": False,
        "unlearn.use_masking": False,
        "unlearn.retain_momentum": 0,
        "unlearn.rep_eng_retain_lr": 1,
        "unlearn.retain_cross_entropy": False,
    }
    with_lora = variant(search, "with_lora")
    assert with_lora.parameters == breakers.parameters
    assert with_lora.overrides == breakers.overrides | {
        "unlearn.lora_rank": 16,
        "unlearn.target_modules": LINEAR,
        "evaluate.every_passes": 60,
    }
    adapters = variant(search, "adapters")
    assert adapters.overrides == {"unlearn.adv_lora_rank": 8, "unlearn.adv_lora_count": 2}
    assert adapters.parameters.keys() == rates | {
        "unlearn.adv_lr", "unlearn.adv_decay", "unlearn.fork_every_n_loops", "unlearn.retain_momentum",
    }  # fmt: skip


def test_a_variant_resets_what_the_file_sets(place: Path) -> None:
    text = STUDY.replace("additional_param_name: null", "additional_param_name: adv_update", 1)
    text = text.replace("additional_param: None", "additional_param: 0.5", 1)
    text += "  without: {additional_param_name: null}\n"
    config, search = imported(text)
    assert config["unlearn"]["adv_update"] == 0.5
    assert variant(search, "plain").overrides == {}
    assert variant(search, "without").overrides == {"unlearn.adv_update": 0}


def test_one_variant(place: Path) -> None:
    config, search = imported(STUDY, "--variant", "entropy")
    assert config["unlearn"]["unlearning_loss_fn"] == "neg_entropy"
    assert config["unlearn"]["rep_eng_retain_lr"] == 1e-6
    assert config["unlearn"]["retain_momentum"] == 0 and config["unlearn"]["square_norm"] is True
    (only,) = search.variants
    assert only.name == search.name and only.overrides == {}
    assert "unlearn.rep_eng_retain_lr" in only.parameters


def test_judged_by_questions(place: Path) -> None:
    config, search = imported(QUESTIONS)
    assert config["model"]["state_dtype"] == "bfloat16"
    assert config["relearn"]["with_retain"] is True
    assert config["unlearn"]["retain_loss_budget"] is None
    assert config["unlearn"]["fork_every_n_loops"] == 48
    assert config["evaluate"]["every_passes"] == 120
    asked = {q["name"]: q["temperature"] for q in config["evaluate"]["multiple_choice"]}
    assert asked == {"wmdp_bio": 0, "mmlu": 1}
    assert (search.objective, search.direction, search.last) == (
        "accuracy_wmdp_bio",
        "minimize",
        60,
    )
    assert [(limit.figure, limit.below) for limit in search.pruning] == [("accuracy_mmlu", 0.2873)]


def test_without_a_budget_none_is_allowed(place: Path) -> None:
    """Where nothing is said, the study ends a trial at the first rise of the retain loss."""
    config, _ = imported(STUDY.replace("  retain_loss_budget: 0.05\n", ""))
    assert config["unlearn"]["retain_loss_budget"] == 0


@pytest.mark.parametrize("text", [STUDY, QUESTIONS], ids=["losses", "questions"])
def test_the_program_takes_it(place: Path, tiny: Case, text: str) -> None:
    """The config, and every variant at both ends of its ranges."""
    _, search = imported(text)
    fixed = [f"model.path={tiny.model}", f"data.context_length={tiny.tokens('retain').shape[1]}"]
    fixed += [f"data.{name}={tiny.data / name}.h5" for name in TOKEN_SETS]
    fixed.append("data.batch_size=4")  # of 9 rows: some are left for the attack
    if text is QUESTIONS:
        file = write_questions(place / "q.h5", [[1, 2]], [[1, 2, 3, 4]], [0])
        fixed.append(f"evaluate.multiple_choice=[{{name: mmlu, file: {file}}}]")
    succeed("plan", search.config, *fixed)
    for one in search.variants:
        for end in ("low", "high"):
            values = {name: getattr(bounds, end) for name, bounds in one.parameters.items()}
            forks = "unlearn.fork_every_n_loops"
            values |= {forks: int(values[forks])} if forks in values else {}
            values |= one.overrides
            succeed(
                "plan", search.config, *fixed, *(f"{k}={as_argument(v)}" for k, v in values.items())
            )


MISTAKES = {
    "n_trials: 70|n_trial: 70": "s.yaml:9: n_trial: unknown key; known are method_name, target_mod",
    "relearn_steps: 120|relearn: 1": "s.yaml:16: relearn: unknown key; known are relearn_steps, ",
    "hyperparams:|hyper:": "s.yaml:17: hyper: unknown key; known are general_config, ",
    "  raw: {normalize_grads: |  raw: {normalise: ": "s.yaml:29: normalise: unknown key",
    "unlearn_steps: 300|unlearn_steps: many": "s.yaml:7: unlearn_steps: a number is expected, not",
    "unlearn_steps: 300|unlearn_steps: 2.5": "s.yaml:7: unlearn_steps: a count is expected, not",
    "adv_lr: [1.e-3, 1.e-1, true]|adv_lr: [1, 2]": "s.yaml:20: adv_lr: [low, high, log] is exp",
    "[1.e-4, 1.e-2, true]|[0, 1, true]": "s.yaml:23: retaining_rate: [0, 1, True] is no range",
    "[1.e-4, 1.e-2, true]|[2, 1, false]": "s.yaml:23: retaining_rate: [2, 1, False] is no range",
    "_fn: neg_entropy|_fn: entropy": "s.yaml:31: unlearning_loss_fn: entropy is not known; known",
    "use_masking: true|use_masking: 1": "s.yaml:13: use_masking: true or false is expected",
    "name: rep_eng_retain_lr|name: other": "s.yaml:33: additional_param_name: other is not known;",
    "lora_rank: 8, |": "s.yaml:38: method_name: surgical_irreversible_unlearning_lora without lora",
    "batch_size: 4|n_trials: 4": "s.yaml:9: n_trials is given twice",
    "  plain: {}|  plain: {model_id: x}": "s.yaml:26: model_id is one for all variants here",
    "  unlearn_steps: 300\n|": "s.yaml: unlearn_steps is missing",
    "target_modules: [gate_proj]|target_modules: gate": "s.yaml:3: target_modules: a list is expec",
    "lr: 3e-3}|lr: 3e-3, relearn_lora_conf: {}}": "s.yaml:16: relearn_lora_conf: not supported",
    "general_config:|general_config: [": "s.yaml:",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes(place: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    before, _, after = change.partition("|")
    assert before in STUDY
    Path("s.yaml").write_text(STUDY.replace(before, after, 1))
    assert import_study.main(["s.yaml"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"import_study.py: {MISTAKES[change]}")
    assert [path.name for path in place.iterdir()] == ["s.yaml"]


def test_wrong_arguments(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text(STUDY)
    calls = {
        ("gone.yaml",): "gone.yaml: No such file",
        ("s.yaml", "--variant", "x"): "--variant x: s.yaml has plain, no_masking, ",
    }
    for arguments, message in calls.items():
        assert import_study.main(list(arguments)) == 2
        assert capsys.readouterr().err.startswith(f"import_study.py: {message}")
    assert import_study.main(["s.yaml"]) == 0
    assert import_study.main(["s.yaml"]) == 2, "files that are there stay"
    assert "s-run.yaml: is there already" in capsys.readouterr().err


def test_the_figure_in_the_study_form(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported searches what configs/ searches, so each checks the other."""
    _, theirs = imported(
        STUDY.replace("[1.e-3, 1.e-1, true]", "[3e-4, 0.1, true]")
        .replace("[1e-7, 0.1, true]", "[1e-7, 0.3, true]")
        .replace("raw: {", "raw: {unlearning_rate: [1.e-4, 300, true], ")
    )
    monkeypatch.chdir(ROOT)
    ours = read_search(Path("configs/smollm-135m/figure-2-python.yaml"))
    pairs = {"plain": "mudman", "alone": "no_adversary", "raw": "no_normalization"}
    for their, our in pairs.items():
        one, other = variant(theirs, their), variant(ours, our)
        assert one.overrides == other.overrides
        assert one.parameters == other.parameters


@pytest.mark.parametrize(
    "value", ["no", "null", "1e-3", "a: b", "7", "python", "a-b/c.d_e", "", "y"]
)
def test_texts_stay_texts(value: str) -> None:
    written = import_study._yaml({"key": [value, True, 0.5]})
    assert yaml.safe_load(written) == {"key": [value, True, 0.5]}
    assert re.search(r"\n", written) is None
