"""What a search says about its studies: lines while it runs, and the table at its end."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from search_config import Search, Variant
from search_study import finished, trials_in
from tool_ends import say
from yaml_reader import as_argument


def completed_values(study: optuna.Study) -> list[float]:
    """The objective of the completed trials, oldest first."""
    return [trial.value for trial in trials_in(study, TrialState.COMPLETE)]


def last_mean(values: Sequence[float], most: int) -> str:
    """Mean ± SEM of the last trials: the population's standard deviation over √n."""
    last = values[-most:]
    error = statistics.pstdev(last) / math.sqrt(len(last))
    return f"last {len(last)}: {statistics.fmean(last):.4f} ± {error:.4f}"


def study_words(search: Search, study: optuna.Study) -> str:
    """The best value, and the mean of the last trials."""
    values = completed_values(study)
    if not values:
        return "none completed yet"
    return f"best {study.best_value:.4f}, {last_mean(values, search.last)}"


def duration(hours: float) -> str:
    minutes = math.ceil(hours * 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def print_summary(search: Search, studies: dict[str, optuna.Study]) -> None:
    """A table of all variants, the best trial of each, and warnings about their ranges."""
    head = ["", "trials", "pruned", "failed", "best", f"last {search.last} completed"]
    table = [head] + [_row(search, name, study) for name, study in studies.items()]
    for study in studies.values():
        if "baseline_score" in study.user_attrs:
            score = f"{study.user_attrs['baseline_score']:.4f}"
            table.append(["relearning only", "", "", "", score, ""])
            break
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    say("")
    for line in table:
        say(
            "  ".join(
                cell.ljust(w) if i in (0, 5) else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
        )
    say("")
    for variant in search.variants:
        study = studies[variant.name]
        if completed_values(study):
            _print_best(variant, study.best_trial)


def _row(search: Search, name: str, study: optuna.Study) -> list[str]:
    values = completed_values(study)
    pruned, failed = (len(trials_in(study, s)) for s in (TrialState.PRUNED, TrialState.FAIL))
    return [
        name,
        *map(str, (len(finished(study)), pruned, failed)),
        f"{study.best_value:.4f}" if values else "-",
        last_mean(values, search.last) if values else "-",
    ]


def _print_best(variant: Variant, best: FrozenTrial) -> None:
    chosen = variant.overrides | best.params
    words = " ".join(f"{key}={as_argument(value)}" for key, value in chosen.items())
    say(f"{variant.name}: the best is trial {best.number}: {words}")
    for name, bounds in variant.parameters.items():
        value = best.params.get(name)
        end = None if value is None else bounds.near_edge(value)
        if end:
            print(
                f"search.py: warning: {variant.name}: the best {name}, {value:.4g}, is near the "
                f"{end} end of [{bounds.low:g}, {bounds.high:g}]: search beyond it",
                file=sys.stderr,
            )
