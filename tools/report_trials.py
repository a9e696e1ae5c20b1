"""What the trials of a search set and harmed: a table of every trial, and a table of harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from report_page import Table
from report_run_tables import DASH, harm_cells, harm_table
from report_runs import ACCURACY, Line, number
from report_studies import Variant, mean_and_error, parameter_value, score

MEASURES = (("retain_loss", "retain loss (nats)", 3), ("kl", "divergence (KL, nats)", 4))


def unlearned_line(trial: FrozenTrial) -> Line:
    """The evaluation of the unlearned model: of the state that was kept, else the last one."""
    lines = trial.user_attrs.get("evaluations") or []
    kept = [line for line in lines if line.get("at") == "kept"]
    return (kept or [line for line in lines if line.get("at") == "unlearn"] or [{}])[-1]


def trial_figure(trial: FrozenTrial, figure: str, at: str) -> float:
    """A figure of a trial after unlearning or relearning; a result gives accuracies no time."""
    if not figure.startswith(ACCURACY):
        return number(trial.user_attrs, f"{figure}_{at}")
    return number(unlearned_line(trial) if at == "unlearn" else trial.user_attrs, figure)


def at_start(variant: Variant, figure: str) -> float:
    """A figure of the model before unlearning."""
    return 0.0 if figure == "kl" else number(variant.study.user_attrs, f"baseline_{figure}")


def variants_harm(variants: Sequence[Variant], last: int) -> Table | None:
    """Harm of every variant: means over the trials that its mean score is taken of."""
    names = dict.fromkeys(
        key
        for v in variants
        for t in v.completed[-1:]
        for key in t.user_attrs
        if key.startswith(ACCURACY)
    )
    asked = [(name, f"accuracy on {name.removeprefix(ACCURACY)}", 3) for name in names]
    rows = []
    for variant in variants:
        trials = variant.completed[-last:]
        for figure, words, digits in (*MEASURES, *asked):
            values = [
                [trial_figure(t, figure, at) for t in trials] for at in ("unlearn", "relearn")
            ]
            start = [at_start(variant, figure)] * len(trials)
            if any(math.isfinite(value) for column in values for value in column):
                cells = harm_cells([start, *values], digits, mean_and_error)
                rows.append([variant.name, words, *cells])
    return harm_table(rows, f" Mean ± SEM of the last {last} completed trials.")


def fixed_settings(variant: Variant) -> str:
    """What every trial of the variant sets beside its parameters, in words; nothing is nothing."""
    settings = variant.study.user_attrs.get("settings")
    fixed = settings.get("overrides") if isinstance(settings, Mapping) else None
    if not isinstance(fixed, Mapping) or not fixed:
        return ""
    words = ", ".join(f"{key} = {setting_value(value)}" for key, value in fixed.items())
    return f" Set in every trial: {words}."


def setting_value(value: Any) -> str:
    """A value as a config has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def trials_table(variant: Variant) -> Table | None:
    """Every trial of a variant with its parameters, to be sorted by any of them."""
    if not variant.trials:
        return None
    names = dict.fromkeys(
        [name for name in variant.ranges if any(name in t.params for t in variant.trials)]
        + [name for trial in variant.trials for name in trial.params]
    )
    rows = []
    for trial in variant.trials:
        row = [str(trial.number), trial.state.name.lower()]
        row.append(f"{score(trial):.4f}" if trial.state == TrialState.COMPLETE else DASH)
        row += [parameter_value(trial.params.get(name, DASH), 6) for name in names]
        row.append(str(trial.user_attrs.get("reason") or ""))
        rows.append(row)
    short = [name.removeprefix("unlearn.") for name in names]
    head = ["trial", "state", "score", *short, "reason"]
    title = f"{variant.name}: all {len(rows)} trials"
    caption = "A click on a column's head sorts by it. A parameter without a dot is one of unlearn."
    caption += fixed_settings(variant)
    text = frozenset({1, len(head) - 1})
    return Table(title, caption, head, rows, text, folded=True, sortable=True)
