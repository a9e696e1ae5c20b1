"""The charts of searches in a report, after the paper's Figures 2, 3 and 6 to 9."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from report_charts import (
    BASELINE_COLOR,
    FAINT_COLOR,
    Chart,
    bar,
    baseline,
    color,
    log_if_wide,
    new_figure,
    panels,
    plain_log_ticks,
    plain_numbers,
    short_number,
    write_chart,
)
from report_studies import Range, Variant, mean_and_error, score, spread

IMPORTANCE_TRIALS = 10  # the fewest that importances are estimated from
TRIAL_ORDER = LinearSegmentedColormap.from_list("order", ["#C6DBEF", "#08306B"])
BEST_COLOR = "#D55E00"


def tint(variants: Sequence[Variant], order: Sequence[str], index: int) -> str:
    """The colour of a variant: by its name, so that it is the same for every search."""
    return color(order.index(variants[index].name))


def bars(variants: Sequence[Variant], order: Sequence[str], last: int, label: str) -> Chart | None:
    """Mean and standard error of the last completed trials (the paper's Figures 2 and 3)."""
    if not any(variant.completed for variant in variants):
        return None
    figure = new_figure(1.3 + 0.36 * len(variants))
    axes = figure.subplots()
    longest = 0.0
    for at, variant in enumerate(variants):
        mean, error = mean_and_error(variant.scores(last))
        few = f"  (n = {len(variant.completed)})" if len(variant.completed) < last else ""
        words = f"{spread(variant, last)}{few}"
        shown_error = error if len(variant.completed) > 1 else math.nan
        paint = tint(variants, order, at)
        bar(axes, at, mean, shown_error, words, paint, "no completed trial")
        longest = max(longest, mean + error) if variant.completed else longest
    levels = sorted({v.baseline for v in variants if math.isfinite(v.baseline)})
    for level in levels:
        baseline(axes, level, vertical=True)
        longest = max(longest, level)
    if levels:
        axes.annotate(
            f"relearning only {levels[-1]:.3f}",
            (levels[-1], 1),
            xytext=(0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=BASELINE_COLOR,
            annotation_clip=False,
        )
    axes.set_xlim(0, 1.3 * longest or 1)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)
    better = "Higher" if variants[0].maximize else "Lower"
    return write_chart(
        figure,
        f"{file_name(variants[0].search)}-variants",
        f"Mean of the last {last} completed trials",
        f"{better} is better forgotten. Error bars: standard error of the mean. Dashed: the same "
        "relearning with no unlearning. Each bar is one search.",
    )


def history(
    variants: Sequence[Variant], order: Sequence[str], last: int, label: str
) -> Chart | None:
    """Every trial in its order, the best so far and the mean of the last N."""
    if not any(variant.completed for variant in variants):
        return None
    height = 2.1 if len(variants) > 2 else 2.8  # of one row, so that the figure's label fits
    figure, grid = panels(len(variants), 2, height, sharex=True, sharey=True)
    log_if_wide(grid[0], [value for variant in variants for value in variant.scores()])
    ends = ", log scale" if grid[0].get_yscale() == "log" else ""
    grid[0].set_ylabel("")  # the figure's label says it
    for at, (axes, variant) in enumerate(zip(grid, variants)):
        paint = tint(variants, order, at)
        numbers, scores = [trial.number for trial in variant.completed], variant.scores()
        choose = max if variant.maximize else min
        best = [choose(scores[: i + 1]) for i in range(len(scores))]
        means = [statistics.fmean(scores[max(i + 1 - last, 0) : i + 1]) for i in range(len(scores))]
        axes.plot(
            numbers,
            scores,
            "o",
            color=paint,
            markersize=2.8,
            alpha=0.45,
            markeredgewidth=0,
        )
        axes.plot(numbers, best, color="#222222", linewidth=1, drawstyle="steps-post")
        axes.plot(numbers, means, color=paint, linewidth=2)
        mark_pruned(axes, [t.number for t in variant.trials if t.state == TrialState.PRUNED])
        if math.isfinite(variant.baseline):
            baseline(axes, variant.baseline)
        axes.set_title(variant.name)
        plain_numbers(axes)
    count = max(len(variant.trials) for variant in variants)
    grid[0].set_xlim(-0.03 * count - 0.5, 1.03 * count)
    grid[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.supxlabel("Trial", fontsize=9)
    figure.supylabel(label + ends, fontsize=9)
    return write_chart(
        figure,
        f"{file_name(variants[0].search)}-history",
        "Optimization history",
        f"Dots: completed trials; black: best so far; thick: mean of the last {last} so far; grey "
        "ticks below: pruned or rejected trials; dashed: relearning only.",
    )


def mark_pruned(axes: Axes, places: Sequence[float]) -> None:
    """Ticks at the foot of a panel: these trials have no score."""
    if not places:
        return
    axes.plot(
        places,
        [0.025] * len(places),
        "|",
        transform=axes.get_xaxis_transform(),
        markersize=5,
        color=FAINT_COLOR,
        alpha=0.8,
    )


def slices(variant: Variant, label: str) -> Chart | None:
    """The score against each hyperparameter (the paper's Figures 6 to 9)."""
    names = [name for name in variant.ranges if any(name in t.params for t in variant.completed)]
    if not names:
        return None
    figure, grid = panels(len(names), 3, 2.25, sharey=True)
    log_if_wide(grid[0], variant.scores())
    newest = max(trial.number for trial in variant.completed)
    for axes, name in zip(grid, names):
        bounds = variant.ranges[name]
        shown = [trial for trial in variant.completed if name in trial.params]
        axes.scatter(
            [trial.params[name] for trial in shown],
            [score(trial) for trial in shown],
            c=[(trial.number + 1) / (newest + 1) for trial in shown],
            cmap=TRIAL_ORDER,
            vmin=0,
            vmax=1,
            s=14,
            linewidths=0,
        )
        if name in variant.best.params:
            axes.plot(
                variant.best.params[name],
                score(variant.best),
                "o",
                markersize=8,
                fillstyle="none",
                color=BEST_COLOR,
                markeredgewidth=1.5,
            )
        pruned = [t for t in variant.trials if t.state == TrialState.PRUNED and name in t.params]
        slice_axis(axes, bounds)
        mark_pruned(axes, [trial.params[name] for trial in pruned])
        if math.isfinite(variant.baseline):
            baseline(axes, variant.baseline)
        axes.set_xlabel(name.removeprefix("unlearn.") + (" (log)" if bounds.log else ""))
    log = ", log scale" if grid[0].get_yscale() == "log" else ""
    grid[0].set_ylabel("")  # the figure's label says it
    figure.supylabel(label.replace(" after relearning", "") + log, fontsize=9)
    return write_chart(
        figure,
        f"{file_name(variant.study.study_name)}-slices",
        f"{variant.name}: score against each hyperparameter",
        "A dot is a completed trial, later ones darker; ring: the best; grey ticks below: pruned "
        "or rejected trials; dashed: relearning only. An axis spans the range of the search.",
    )


def slice_axis(axes: Axes, bounds: Range) -> None:
    """The range of the search as the axis."""
    if bounds.high <= bounds.low or (bounds.log and bounds.low <= 0):
        return
    if bounds.log:
        axes.set_xscale("log")
        plain_log_ticks(axes, "x", bounds.low, bounds.high)
        margin = (bounds.high / bounds.low) ** 0.04
        axes.set_xlim(bounds.low / margin, bounds.high * margin)
    else:
        margin = 0.04 * (bounds.high - bounds.low)
        axes.set_xlim(bounds.low - margin, bounds.high + margin)
        axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
        axes.locator_params(axis="x", nbins=4)


def importances(
    variants: Sequence[Variant], order: Sequence[str], notes: list[str]
) -> Chart | None:
    """How much of the scores' variance each hyperparameter explains, by fANOVA."""
    found: dict[int, dict[str, float]] = {}
    few: list[str] = []
    for at, variant in enumerate(variants):
        if len(variant.ranges) < 2:
            continue  # one hyperparameter explains everything
        if len(variant.completed) < IMPORTANCE_TRIALS:
            few.append(f"{variant.name} ({len(variant.completed)})")
            continue
        try:
            evaluator = FanovaImportanceEvaluator(seed=0)
            found[at] = get_param_importances(variant.study, evaluator=evaluator)
        except (ImportError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            notes.append(f"{variant.study.study_name}: no importances: {reason}")
    if few:
        notes.append(
            f"{variants[0].search}: no importances of {', '.join(few)}: {IMPORTANCE_TRIALS} "
            "completed trials are needed"
        )
    if not found:
        return None
    names = {name for values in found.values() for name in values}
    sums = {name: sum(values.get(name, 0) for values in found.values()) for name in names}
    names_shown = sorted(names, key=lambda name: (-sums[name], name))
    height = 1.0 + 0.22 * len(names_shown)
    figure, grid = panels(len(found), 3, height, sharex=True, sharey=True)
    for axes, (at, values) in zip(grid, found.items()):
        lengths = [values.get(name, 0.0) for name in names_shown]
        axes.barh(range(len(lengths)), lengths, height=0.6, color=tint(variants, order, at))
        axes.set_title(variants[at].name)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(names_shown)), [n.removeprefix("unlearn.") for n in names_shown])
    grid[0].set_ylim(len(names_shown) - 0.5, -0.5)
    figure.supxlabel("Share of the explained variance", fontsize=9)
    return write_chart(
        figure,
        f"{file_name(variants[0].search)}-importances",
        "Importance of each hyperparameter",
        "Optuna's fANOVA over the completed trials; the shares of a search add up to 1.",
    )


def file_name(name: str) -> str:
    """A study's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "study"
