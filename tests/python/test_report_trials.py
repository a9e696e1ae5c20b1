"""report.py on the trials of a search: every trial's settings, and what was harmed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

import report_studies
import report_trials

SPACE = {
    "unlearn.adv_lr": FloatDistribution(1e-5, 1, log=True),
    "relearn.optimizer": CategoricalDistribution(["sgd", "adamw"]),
}
RETAIN, ACCURACY = (2.5, 2.6, 2.9), (0.3, 0.4, 0.2)


def trial(i: int, **fate: Any) -> optuna.trial.FrozenTrial:
    values = {"unlearn.adv_lr": 0.123456789 / (i + 1), "relearn.optimizer": "adamw"}
    return create_trial(params=values, distributions=SPACE, **fate)


def figures(i: int) -> dict[str, Any]:
    """What a result and the evaluations before it say; the state after 5 passes was kept."""
    lines = [
        {"at": "unlearn", "passes": 5, "accuracy_mmlu": 0.0},
        {"at": "unlearn", "passes": 10, "accuracy_mmlu": 0.0},
        {"at": "kept", "passes": 5, "accuracy_mmlu": ACCURACY[i]},
        {"at": "relearn", "passes": 5, "accuracy_mmlu": 0.9},
    ]
    losses = {"retain_loss_unlearn": RETAIN[i], "retain_loss_relearn": RETAIN[i] + 1}
    return losses | {"accuracy_mmlu": 0.25, "evaluations": lines}


@pytest.fixture(scope="module")
def variant() -> report_studies.Variant:
    study = optuna.create_study(study_name="tiny-mudman", direction="maximize")
    fixed = {"overrides": {"unlearn.use_masking": False, "unlearn.passes": 10}}
    attributes = {"variant": "mudman", "baseline_retain_loss": 2.0, "baseline_accuracy_mmlu": 0.5}
    for key, value in (attributes | {"settings": fixed}).items():
        study.set_user_attr(key, value)
    for i in range(3):
        study.add_trial(trial(i, value=float(i), user_attrs=figures(i)))
    reason = {"reason": "retain loss 9 exceeds 2.05"}
    study.add_trial(trial(3, state=TrialState.PRUNED, user_attrs=reason))
    study.add_trial(trial(4, state=TrialState.FAIL, user_attrs={"reason": "its driver ended"}))
    study.add_trial(trial(5, state=TrialState.RUNNING))
    return report_studies.read_variant(study)


def test_every_trial(variant: report_studies.Variant) -> None:
    table = report_trials.trials_table(variant)
    assert table.folded and table.sortable and table.title == "mudman: all 6 trials"
    assert table.head == ["trial", "state", "score", "adv_lr", "relearn.optimizer", "reason"]
    assert table.rows[2] == ["2", "complete", "2.0000", "0.0411523", "adamw", ""]
    assert [row[:3] + row[5:] for row in table.rows[3:]] == [
        ["3", "pruned", "–", "retain loss 9 exceeds 2.05"],
        ["4", "fail", "–", "its driver ended"],
        ["5", "running", "–", ""],
    ]
    assert "unlearn.use_masking = false, unlearn.passes = 10." in table.caption


@pytest.mark.parametrize("last", [2, 30])
def test_harm_is_of_the_trials_of_the_score(variant: report_studies.Variant, last: int) -> None:
    """Means of the last trials, with the paper's standard error; accuracies of what was kept."""
    rows = {row[1]: row[2:] for row in report_trials.variants_harm([variant], last).rows}
    assert set(rows) == {"retain loss (nats)", "accuracy on mmlu"}
    for name, values, start in (
        ("retain loss (nats)", RETAIN, 2.0),
        ("accuracy on mmlu", ACCURACY, 0.5),
    ):
        values = np.array(values[-last:])
        error = values.std() / math.sqrt(len(values))
        assert rows[name][:3] == [
            f"{start:.3f}",
            f"{values.mean():.3f} ± {error:.3f}",
            f"{values.mean() - start:+.3f} ± {error:.3f}",
        ]
    assert rows["accuracy on mmlu"][3:] == ["0.250", "-0.250"]
    assert rows["retain loss (nats)"][3].startswith(f"{np.mean(RETAIN[-last:]) + 1:.3f} ± ")


def test_what_an_older_search_did_not_store() -> None:
    """No start, no evaluations: dashes; nothing at all: no table."""
    study = optuna.create_study(direction="maximize")
    study.add_trial(trial(0, value=1.0, user_attrs={"retain_loss_unlearn": 2.5}))
    (row,) = report_trials.variants_harm([report_studies.read_variant(study)], 30).rows
    assert row[2:] == ["–", "2.500", "–", "–", "–"]
    empty = report_studies.read_variant(optuna.create_study())
    assert report_trials.variants_harm([empty], 30) is None
    assert report_trials.trials_table(empty) is None
