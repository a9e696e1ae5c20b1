"""Runs that differ by their seed alone: one line of a chart, one row of a table.

What is shown of them is the mean over the seeds with its standard error: the standard deviation
(divisor n - 1, for seeds are few) over the square root of n. A line goes as far as all of its runs
do. The same seed twice is no second sample.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from identities import difference, inputs, is_aside, is_place, without_paths
from report_runs import Point, Run

SEED = "seed"


@dataclass(frozen=True)
class Line:
    """A line of a chart: the means over n runs, and their standard errors; none of a single run."""

    points: Sequence[Point]
    errors: Sequence[Point]
    n: int


@dataclass
class Series:
    """Runs that differ by their seed alone; mostly there is one."""

    name: str
    runs: list[Run]
    unlearning: Line
    attacks: dict[str, Line]

    @property
    def label(self) -> str:
        """The name, with the number of seeds where there are several."""
        return self.name if len(self.runs) == 1 else f"{self.name} (n = {len(self.runs)})"

    def lines(self, unlearning: bool = True) -> list[Line]:
        """The lines of the series, or of its attacks only."""
        return [self.unlearning] * unlearning + list(self.attacks.values())

    def questions(self) -> list[str]:
        """The names of the question sets that were evaluated."""
        return list(dict.fromkeys(name for run in self.runs for name in run.questions()))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error; not a number where any value is not, or none is."""
    if not values or not all(map(math.isfinite, values)):
        return math.nan, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def mean_points(points: Sequence[Point]) -> tuple[Point, Point]:
    """The mean of one evaluation of several runs, and its standard errors at the same place."""
    fields: list[Callable[[Point], float]] = [
        lambda p: p.step,
        lambda p: p.forget,
        lambda p: p.retain,
        lambda p: p.kl,
    ]
    pairs = [mean_and_error([of(p) for p in points]) for of in fields]
    names = dict.fromkeys(name for p in points for name in p.accuracy)
    asked = {
        name: mean_and_error([p.accuracy.get(name, math.nan) for p in points]) for name in names
    }
    (step, _), *rest = pairs
    both = []
    for which in range(2):
        accuracy = {name: pair[which] for name, pair in asked.items()}
        forget, retain, kl = (pair[which] for pair in rest)
        both.append(Point(points[0].passes, step, forget, retain, accuracy, kl))
    return both[0], both[1]


def mean_line(lines: Sequence[Sequence[Point]]) -> Line:
    """The means at the passes at which all of these runs were evaluated."""
    if len(lines) == 1:
        return Line(lines[0], [], 1)
    at = [{point.passes: point for point in line} for line in lines]
    common = [passes for passes in at[0] if all(passes in other for other in at[1:])] if at else []
    pairs = [mean_points([line[passes] for line in at]) for passes in common]
    return Line([mean for mean, _ in pairs], [error for _, error in pairs], len(lines))


def mean_values(columns: Sequence[Mapping[float, float]]) -> list[tuple[float, float, float]]:
    """Place, mean and standard error where all of these runs have a value."""
    first, *others = columns
    common = [x for x in first if all(x in other for other in others)]
    return [(x, *mean_and_error([column[x] for column in columns])) for x in common]


def settings(run: Run) -> dict[str, Any]:
    """What decides the run's results beside its seed and the content of its inputs."""
    kept = {}
    for key, text in run.config.items():
        if key != SEED and not is_aside(key) and not is_place(key):
            kept[key] = without_paths(parsed(text))
    return kept


def parsed(text: str) -> Any:
    """A list of a config as such, any other value as it is written."""
    try:
        return json.loads(text) if text.startswith("[") else text
    except ValueError:
        return text


def places(run: Run) -> list[str]:
    """Where the run's inputs lie; of a list of files the whole list."""
    return [
        text
        for key, text in run.config.items()
        if is_place(key) or key == "evaluate.multiple_choice"
    ]


def differ_by_seed_alone(left: Run, right: Run) -> bool:
    """Whether two runs have the same settings and inputs; those of an unfinished run, which has no
    hashes, are known by their places."""
    if not left.config or not right.config or settings(left) != settings(right):
        return False
    hashes = [inputs(run.result.get("identity")) for run in (left, right)]
    same = difference(*hashes) is None if all(hashes) else places(left) == places(right)
    return same and left.config.get(SEED) != right.config.get(SEED)


def one_sample(series: Series) -> str | None:
    """A remark where the seeds gave the same figures: several runs are then no several samples."""
    figures = [
        [(p.forget, p.retain) for points in (run.unlearning, *run.attacks.values()) for p in points]
        for run in series.runs
    ]
    if len(figures) == 1 or any(other != figures[0] for other in figures):
        return None
    return (
        f"{series.label}: all seeds gave the same figures: nothing in these runs is random, so "
        "they are one sample, and an error of 0 says nothing"
    )


def common_name(names: Sequence[str]) -> str:
    """What the names share, less the word seed and what joins: of a-seed-1 and a-seed-2 it is a."""
    before = os.path.commonprefix(names)
    rest = [name[len(before) :] for name in names]
    after = os.path.commonprefix([name[::-1] for name in rest])[::-1]
    before = re.sub(r"\d+$", "", before)
    before = re.sub(r"((^|[-_./= ]+)(seeds?|s))?[-_./= ]*$", "", before)
    after = re.sub(r"^\d*[-_./ ]*", "", after)
    return "/".join(filter(None, (before, after)))


def as_series(name: str, runs: list[Run]) -> Series:
    """The means of the runs. A run that did not come so far is no part of a line, nor is an attack
    that diverged where others did not."""
    unlearned = [run.unlearning for run in runs if len(run.unlearning) > 1]
    attacks = {}
    for at in dict.fromkeys(name for run in runs for name in run.attacks):
        made = [run for run in runs if at in run.attacks]
        sound = [run for run in made if run.result.get(f"diverged_{at}") is None]
        attacks[at] = mean_line([run.attacks[at] for run in sound or made])
    return Series(name, runs, mean_line(unlearned or [run.unlearning for run in runs]), attacks)


def group_by_seed(runs: Sequence[Run]) -> list[Series]:
    """The runs, those that differ by their seed alone together."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if all(differ_by_seed_alone(run, other) for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    names = [common_name([run.name for run in group]) for group in groups]
    taken = [group[0].name for group in groups if len(group) == 1]
    series = []
    for group, name in zip(groups, names):
        alone = len(group) == 1 or not name or name in taken or names.count(name) > 1
        series.append(as_series(group[0].name if alone else name, group))
    return series
