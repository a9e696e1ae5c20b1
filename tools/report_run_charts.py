"""The charts of run folders in a report: scores, losses, their trajectory, attacks, every loop.

Runs that differ by their seed alone are one line, the mean, with a band of one standard error to
either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from report_charts import (
    BASELINE_COLOR,
    DIRECT_LABELS,
    LINE_STYLES,
    WIDTH,
    Chart,
    bar,
    color,
    label_ends,
    log_if_wide,
    marker,
    new_figure,
    panels,
    plain_numbers,
    write_chart,
)
from report_run_tables import spread
from report_runs import Point, number
from report_seeds import Line, Series, mean_and_error, mean_values

End = tuple[float, float, str, str]  # of a line in a chart: x, y, its name, its colour
Value = Callable[[Point], float]
BAND = 0.2  # how dense the colour of a band is
LEGEND_ROW = 0.19  # inches
LETTER, HANDLE = 0.078, 0.65  # inches that a letter and a line's sample take in a legend
SEEDS = " Bands: one standard error over the seeds (n) to either side of their mean."


def seeds_words(all_series: Sequence[Series]) -> str:
    """What a caption says of bands, where there are any."""
    return SEEDS if any(len(series.runs) > 1 for series in all_series) else ""


def attack_style(series: Series, attack: str, first: int = 0) -> Any:
    """The line style of an attack within its series, whose first attack has number `first`."""
    return LINE_STYLES[(first + list(series.attacks).index(attack)) % len(LINE_STYLES)]


def attack_name(series: Series, attack: str) -> str:
    """How a chart names the line of an attack, with the number of its seeds."""
    name = series.name if len(series.attacks) == 1 else f"{series.name}, {attack or 'attack'}"
    n = series.attacks[attack].n
    if len(series.runs) == 1:
        return name
    return (
        f"{name} (n = {n})" if n == len(series.runs) else f"{name} (n = {n} of {len(series.runs)})"
    )


def draw(axes: Axes, line: Line, x: str, y: Value, **style: Any) -> None:
    """One line through the points' values with a band of their errors; gaps where they lack."""
    places, values = [getattr(p, x) for p in line.points], [y(p) for p in line.points]
    axes.plot(places, values, **style)
    if line.errors:
        band(axes, places, values, [y(p) for p in line.errors], style["color"])


def band(
    axes: Axes, x: Sequence[float], y: Sequence[float], errors: Sequence[float], tint: str
) -> None:
    """One error to either side of a line."""
    low, high = ([at + sign * e for at, e in zip(y, errors)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=tint, alpha=BAND, linewidth=0)


def name_lines(
    figure: Figure,
    all_series: Sequence[Series],
    grid: Sequence[Axes],
    ends: Sequence[Sequence[End]],
) -> None:
    """Name the lines: at their ends in each panel where that names every run and crosses nothing,
    else in a legend above the figure."""
    in_reach = len(grid) <= 2 and all(series.attacks for series in all_series)
    if in_reach and max(map(len, ends)) <= DIRECT_LABELS:
        figure.draw_without_rendering()  # places the panels: labels are moved apart on the page
        for axes, here in zip(grid, ends):
            label_ends(axes, here)
    elif len(all_series) > 1 or all_series[0].attacks or len(all_series[0].runs) > 1:
        legend(figure, all_series)


def legend(figure: Figure, all_series: Sequence[Series], first: int = 0) -> None:
    """A sample for each line above the figure; where all series were attacked alike, one for each
    series and one for each attack."""
    attacks = list(all_series[0].attacks)
    alike = all(list(series.attacks) == attacks for series in all_series)
    whole = all(line.n == len(s.runs) for s in all_series for line in s.attacks.values())
    handles = []
    for index, series in enumerate(all_series):
        look = {"color": color(index), "marker": marker(index)}
        if len(attacks) > 1 and len(all_series) > 1 and alike and whole:
            handles.append(Line2D([], [], label=series.label, **look))
            continue
        for attack in series.attacks or [""]:
            name = attack_name(series, attack) if series.attacks else series.label
            style = attack_style(series, attack, first) if series.attacks else "-"
            handles.append(Line2D([], [], label=name, linestyle=style, **look))
    if len(handles) == len(all_series) and len(attacks) > 1:
        for attack in attacks:
            style = attack_style(all_series[0], attack, first)
            handles.append(Line2D([], [], label=attack, linestyle=style, color=BASELINE_COLOR))
    place_legend(figure, handles)


def place_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """As many columns as the figure is wide enough for; it grows by what the legend takes."""
    widest = HANDLE + LETTER * max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(4, int(WIDTH / widest)))
    height = LEGEND_ROW * math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + height)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def scores(all_series: Sequence[Series]) -> Chart | None:
    """The score of every series with its standard error over the seeds."""
    values = [[number(run.result, "score") for run in series.runs] for series in all_series]
    known = [[v for v in some if math.isfinite(v)] for some in values]
    if sum(map(bool, known)) < 2 and not any(len(some) > 1 for some in known):
        return None
    figure = new_figure(1.1 + 0.36 * len(all_series))
    axes = figure.subplots()
    longest = 0.0
    for at, (some, there) in enumerate(zip(values, known)):
        mean, error = mean_and_error(there)
        bar(axes, at, mean, error, spread(some), color(at), "no score")
        longest = max([longest, *(v for v in (mean, mean + error) if math.isfinite(v))])
    axes.set_xlim(0, 1.3 * longest or 1)
    axes.set_ylim(len(all_series) - 0.5, -0.5)
    axes.set_yticks(range(len(all_series)), [series.label for series in all_series])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Score: lowest forget loss while relearning (nats a token)")
    words = " Error bars: one standard error over the seeds (n)." if seeds_words(all_series) else ""
    return write_chart(
        figure,
        "runs-scores",
        "Scores",
        f"Higher is better forgotten. Of several attacks the worst counts.{words}",
    )


def last_values(line: Line, x: str, y: Value) -> tuple[float, float]:
    """The last place of a line."""
    places = [(getattr(p, x), y(p)) for p in line.points if math.isfinite(y(p))]
    return places[-1] if places else (math.nan, math.nan)


def loss_curves(all_series: Sequence[Series]) -> Chart | None:
    """Forget and retain loss over passes; a column for each phase, each counted from its start."""
    has = [
        any(len(series.unlearning.points) > 1 for series in all_series),
        any(series.attacks for series in all_series),
    ]
    phases = [name for name, there in zip(("Unlearning", "Relearning"), has) if there]
    if not phases:
        return None
    figure = new_figure(5.0)
    grid = figure.subplots(2, len(phases), sharey="row", sharex="col", squeeze=False)
    kinds: list[tuple[str, Value]] = [
        ("Forget loss (nats a token)", lambda p: p.forget),
        ("Retain loss (nats a token)", lambda p: p.retain),
    ]
    all_ends = []
    for row, (label, value) in zip(grid, kinds):
        row[0].set_ylabel(label)
        ends: list[End] = []
        if has[0]:
            unlearning_lines(row[0], all_series, value)
        if has[1]:
            ends = attack_lines(row[-1], all_series, "passes", value)
        log_if_wide(row[0], values_of(all_series, value))
        plain_numbers(row[0])
        all_ends.append(ends)
    for axes, name in zip(grid[0], phases):
        axes.set_title(name)
    for axes in grid[1]:
        axes.set_xlabel("Passes")
    name_lines(figure, all_series, grid[:, -1], all_ends)
    return write_chart(
        figure,
        "runs-losses",
        "Loss over passes",
        "On the evaluation batches. A pass is one forward or one backward pass; relearning counts "
        f"from its own start, at the unlearned model.{seeds_words(all_series)}",
    )


def values_of(all_series: Sequence[Series], value: Value, unlearning: bool = True) -> list[float]:
    """All values that the lines show."""
    lines = [line for series in all_series for line in series.lines(unlearning)]
    return [value(point) for line in lines for point in line.points]


def unlearning_lines(axes: Axes, all_series: Sequence[Series], value: Value) -> None:
    """The evaluations of the unlearning phase over passes; a rejected run says so at its end."""
    for index, series in enumerate(all_series):
        look = {"color": color(index), "marker": marker(index)}
        draw(axes, series.unlearning, "passes", value, **look)
        if series.runs[0].result.get("status") == "rejected" and not series.attacks:
            axes.annotate(
                "rejected",
                last_values(series.unlearning, "passes", value),
                xytext=(-6, -2),
                textcoords="offset points",
                color=color(index),
                ha="right",
                va="top",
            )


def attack_lines(axes: Axes, all_series: Sequence[Series], x: str, value: Value) -> list[End]:
    """The evaluations of every attack over passes or steps; returns the ends of the lines."""
    ends = []
    for index, series in enumerate(all_series):
        for attack, line in series.attacks.items():
            look = {"color": color(index), "marker": marker(index)}
            draw(axes, line, x, value, linestyle=attack_style(series, attack), **look)
            ends.append((*last_values(line, x, value), attack_name(series, attack), color(index)))
    return ends


def way(axes: Axes, line: Line, index: int, style: Any) -> tuple[float, float]:
    """Forget against retain loss of one phase, with the errors of both; returns its end."""
    retain, forget = [p.retain for p in line.points], [p.forget for p in line.points]
    axes.plot(
        retain, forget, color=color(index), linestyle=style, marker=marker(index), markersize=3.5
    )
    if line.errors:
        axes.errorbar(
            retain,
            forget,
            xerr=[p.retain for p in line.errors],
            yerr=[p.forget for p in line.errors],
            fmt="none",
            ecolor=color(index),
            alpha=0.5,
            linewidth=1,
        )
    return (retain[-1], forget[-1]) if retain else (math.nan, math.nan)


def ways(axes: Axes, all_series: Sequence[Series]) -> list[End]:
    """Every series from its start through unlearning and each attack; returns the ends."""
    ends: list[End] = []
    for index, series in enumerate(all_series):
        line, tint = series.unlearning, color(index)
        end = way(axes, line, index, "-")
        start = [p.retain for p in line.points[:1]], [p.forget for p in line.points[:1]]
        axes.plot(*start, color="#222222", marker="o", markersize=10, fillstyle="none")
        for attack, points in series.attacks.items():
            end = way(axes, points, index, attack_style(series, attack, first=1))
            axes.plot(*end, color=tint, marker=marker(index), markersize=8)
            ends.append((*end, attack_name(series, attack), tint))
        if not series.attacks and len(line.points) > 1:
            ends.append((*end, series.label, tint))
    return ends


def trajectory(all_series: Sequence[Series]) -> Chart | None:
    """Forget against retain loss: the way through unlearning and relearning."""
    drawn = [series for series in all_series if len(series.unlearning.points) > 1 or series.attacks]
    if not drawn:
        return None
    figure = new_figure(4.4)
    axes = figure.subplots()
    ends = ways(axes, all_series)
    log_if_wide(axes, [p.forget for series in all_series for p in series.unlearning.points])
    budget_lines(axes, drawn)
    axes.set_xlabel("Retain loss (nats a token)")
    log = ", log scale" if axes.get_yscale() == "log" else ""
    axes.set_ylabel(f"Forget loss (nats a token){log}")
    plain_numbers(axes)
    if len(all_series) > 1 or len(ends) > 1:
        legend(figure, all_series, first=1)
    words = " Crosses: one standard error over the seeds (n)." if seeds_words(all_series) else ""
    return write_chart(
        figure,
        "runs-trajectory",
        "Forget against retain loss",
        "Up is better forgotten, left is better kept. Ring: the model at the start; solid: "
        "unlearning; broken: relearning, to the large mark at its end. The retain-loss budget "
        f"binds while unlearning.{words}",
    )


def budget_lines(axes: Axes, all_series: Sequence[Series]) -> None:
    """The retain loss beyond which a run is rejected."""
    limits = set()
    for series in all_series:
        try:
            budget = float(series.runs[0].config.get("unlearn.retain_loss_budget", "nan"))
        except ValueError:  # null
            continue
        if len(series.unlearning.points) > 1:
            limits.add(round(series.unlearning.points[0].retain + budget, 4))
    for limit in limits:
        if math.isfinite(limit):
            axes.axvline(limit, color=BASELINE_COLOR, linestyle="--", linewidth=1, zorder=1)
            axes.annotate(
                "retain-loss budget",
                (limit, 1),
                xycoords=("data", "axes fraction"),
                xytext=(4, -4),
                textcoords="offset points",
                va="top",
                color=BASELINE_COLOR,
            )


def attack_curves(all_series: Sequence[Series]) -> Chart | None:
    """Forget loss, and the accuracy of each question set, against relearning steps."""
    if not any(series.attacks for series in all_series):
        return None
    kinds: list[tuple[str, Value]] = [("Forget loss (nats a token)", lambda p: p.forget)]
    for name in dict.fromkeys(name for series in all_series for name in series.questions()):
        kinds.append((f"Accuracy on {name}", lambda p, name=name: p.accuracy.get(name, math.nan)))
    figure, grid = panels(len(kinds), 2, 3.2, sharex=True)
    all_ends = []
    for axes, (label, value) in zip(grid, kinds):
        all_ends.append(attack_lines(axes, all_series, "step", value))
        axes.set_ylabel(label)
        axes.set_xlabel("Relearning steps")
        if label.startswith("Accuracy"):
            axes.set_ylim(0, 1.03)
        else:
            log_if_wide(axes, values_of(all_series, value, unlearning=False))
        plain_numbers(axes)
    if len(grid) == 2:  # the labels beside the right panel serve the left one too
        name_lines(figure, all_series, grid[1:], all_ends[1:])
    else:
        name_lines(figure, all_series, grid, all_ends)
    return write_chart(
        figure,
        "runs-attacks",
        "Attack curves",
        "What fine-tuning brings back, against its steps; step 0 is the unlearned model. A higher "
        f"loss and a lower accuracy at the end are better forgotten.{seeds_words(all_series)}",
    )


def loop_curves(all_series: Sequence[Series]) -> Chart | None:
    """Mask fraction, gradient norm and the batch losses of each loop."""
    drawn = [(at, s) for at, s in enumerate(all_series) if any(r.phase("unlearn") for r in s.runs)]
    if not drawn:
        return None
    kinds = [
        ("mask_fraction", "Share of weights kept by the mask"),
        ("grad_norm", "Norm of the unlearning gradient"),
        ("adversary_loss", "Adversary's forget loss (nats a token)"),
        ("retain_loss", "Retain loss on its batch (nats a token)"),
    ]
    figure, grid = panels(len(kinds), 2, 2.5, sharex=True)
    for axes, (key, label) in zip(grid, kinds):
        shown = [value for at, series in drawn for value in loop_line(axes, at, series, key)]
        axes.set_title(label, fontweight="normal")
        if key == "mask_fraction":
            axes.set_ylim(0, 1.03)
        else:
            log_if_wide(axes, shown)
        plain_numbers(axes)
    for axes in grid[-2:]:
        axes.set_xlabel("Loop")
    if len(all_series) > 1 or len(all_series[0].runs) > 1:
        place_legend(figure, [Line2D([], [], color=color(at), label=s.label) for at, s in drawn])
    return write_chart(
        figure,
        "runs-loops",
        "Every loop of unlearning",
        "The mask's share is 1 where masking is off. The norm is the one that divides the "
        "gradient. Both losses are on the loop's training batch; the adversary's falls until it is "
        f"forked again.{seeds_words(all_series)}",
    )


def loop_line(axes: Axes, index: int, series: Series, key: str) -> list[float]:
    """A figure of every loop; returns the values shown."""
    columns = [
        {number(line, "loop"): number(line, key) for line in run.phase("unlearn")}
        for run in series.runs
        if run.phase("unlearn")
    ]
    line = mean_values(columns)
    loops, means, errors = ([place[i] for place in line] for i in range(3))
    axes.plot(
        loops,
        means,
        color=color(index),
        linewidth=1.1,
        marker=marker(index) if len(loops) < 3 else None,
    )
    if len(columns) > 1:
        band(axes, loops, means, errors, color(index))
    return means
