"""The charts of run folders in a report: losses, their trajectory, attacks, and every loop."""

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
    Chart,
    color,
    label_ends,
    log_if_wide,
    marker,
    new_figure,
    panels,
    plain_numbers,
    write_chart,
)
from report_runs import Point, Run, number

End = tuple[float, float, str, str]  # of a line in a chart: x, y, its name, its colour


def attack_style(run: Run, attack: str) -> Any:
    """The line style of an attack within its run."""
    return LINE_STYLES[list(run.attacks).index(attack) % len(LINE_STYLES)]


def attack_name(run: Run, attack: str) -> str:
    """How a chart names the line of an attack."""
    return run.name if len(run.attacks) == 1 else f"{run.name}, {attack or 'attack'}"


def draw(
    axes: Axes, points: Sequence[Point], x: str, y: Callable[[Point], float], **style: Any
) -> None:
    """One line through the points' values; gaps where a value is missing."""
    axes.plot([getattr(p, x) for p in points], [y(p) for p in points], **style)


def name_lines(
    figure: Figure, runs: Sequence[Run], grid: Sequence[Axes], ends: Sequence[Sequence[End]]
) -> None:
    """Name the lines: at their ends in each panel where that names every run and crosses nothing,
    else in a legend above the figure."""
    in_reach = len(grid) <= 2 and all(run.attacks for run in runs)
    if in_reach and max(map(len, ends)) <= DIRECT_LABELS:
        figure.draw_without_rendering()  # places the panels: labels are moved apart on the page
        for axes, here in zip(grid, ends):
            label_ends(axes, here)
    else:
        legend(figure, runs)


def legend(figure: Figure, runs: Sequence[Run]) -> None:
    """A line for each run, or for each of its attacks, above the figure."""
    handles = []
    for index, run in enumerate(runs):
        for attack in run.attacks or [""]:
            name = attack_name(run, attack) if run.attacks else run.name
            style = attack_style(run, attack) if run.attacks else "-"
            look = {"color": color(index), "marker": marker(index), "linestyle": style}
            handles.append(Line2D([], [], label=name, **look))
    figure.legend(handles=handles, loc="outside upper left", ncols=3)


def last_values(
    points: Sequence[Point], x: str, y: Callable[[Point], float]
) -> tuple[float, float]:
    """The last place of a line."""
    places = [(getattr(p, x), y(p)) for p in points if math.isfinite(y(p))]
    return places[-1] if places else (math.nan, math.nan)


def loss_curves(runs: Sequence[Run]) -> Chart | None:
    """Forget and retain loss over passes; a column for each phase, each counted from its start."""
    has = [any(len(run.unlearning) > 1 for run in runs), any(run.attacks for run in runs)]
    phases = [name for name, there in zip(("Unlearning", "Relearning"), has) if there]
    if not phases:
        return None
    figure = new_figure(5.0)
    grid = figure.subplots(2, len(phases), sharey="row", sharex="col", squeeze=False)
    kinds: list[tuple[str, Callable[[Point], float]]] = [
        ("Forget loss (nats)", lambda p: p.forget),
        ("Retain loss (nats)", lambda p: p.retain),
    ]
    all_ends = []
    for row, (label, value) in zip(grid, kinds):
        row[0].set_ylabel(label)
        ends: list[End] = []
        if has[0]:
            unlearning_lines(row[0], runs, value)
        if has[1]:
            ends = attack_lines(row[-1], runs, "passes", value)
        log_if_wide(row[0], [value(p) for run in runs for p in run.points()])
        plain_numbers(row[0])
        all_ends.append(ends)
    for axes, name in zip(grid[0], phases):
        axes.set_title(name)
    for axes in grid[1]:
        axes.set_xlabel("Passes")
    name_lines(figure, runs, grid[:, -1], all_ends)
    return write_chart(
        figure,
        "runs-losses",
        "Loss over passes",
        "On the evaluation batches. A pass is one forward or one backward pass; relearning counts "
        "from its own start, at the unlearned model.",
    )


def unlearning_lines(axes: Axes, runs: Sequence[Run], value: Callable[[Point], float]) -> None:
    """The evaluations of the unlearning phase over passes; a rejected run says so at its end."""
    for index, run in enumerate(runs):
        draw(axes, run.unlearning, "passes", value, color=color(index), marker=marker(index))
        if run.result.get("status") == "rejected" and not run.attacks:
            x, y = last_values(run.unlearning, "passes", value)
            axes.annotate(
                "rejected",
                (x, y),
                xytext=(-6, -2),
                textcoords="offset points",
                color=color(index),
                ha="right",
                va="top",
            )


def attack_lines(
    axes: Axes, runs: Sequence[Run], x: str, value: Callable[[Point], float]
) -> list[End]:
    """The evaluations of every attack over passes or steps; returns the ends of the lines."""
    ends = []
    for index, run in enumerate(runs):
        for attack, points in run.attacks.items():
            draw(
                axes,
                points,
                x,
                value,
                color=color(index),
                marker=marker(index),
                linestyle=attack_style(run, attack),
            )
            ends.append((*last_values(points, x, value), attack_name(run, attack), color(index)))
    return ends


def trajectory(runs: Sequence[Run]) -> Chart | None:
    """Forget against retain loss: the way through unlearning and relearning."""
    drawn = [run for run in runs if len(run.unlearning) > 1 or run.attacks]
    if not drawn:
        return None
    figure = new_figure(4.4)
    axes = figure.subplots()
    ends: list[End] = []
    for index, run in enumerate(runs):
        tint = color(index)
        retain, forget = [p.retain for p in run.unlearning], [p.forget for p in run.unlearning]
        axes.plot(retain, forget, color=tint, marker=marker(index), markersize=3.5)
        axes.plot(
            retain[:1], forget[:1], color="#222222", marker="o", markersize=10, fillstyle="none"
        )
        for attack, points in run.attacks.items():
            name = attack_name(run, attack)
            retain, forget = [p.retain for p in points], [p.forget for p in points]
            axes.plot(
                retain, forget, color=tint, linestyle=":", marker=marker(index), markersize=3.5
            )
            axes.plot(retain[-1:], forget[-1:], color=tint, marker=marker(index), markersize=8)
            ends.append((retain[-1], forget[-1], name, tint))
        if not run.attacks and run in drawn:
            ends.append((retain[-1], forget[-1], run.name, tint))
    log_if_wide(axes, [p.forget for run in runs for p in run.unlearning])
    budget_lines(axes, drawn)
    axes.set_xlabel("Retain loss (nats)")
    axes.set_ylabel("Forget loss (nats)" + (", log scale" if axes.get_yscale() == "log" else ""))
    plain_numbers(axes)
    if len(ends) <= DIRECT_LABELS:
        for x, y, name, tint in ends:
            if math.isfinite(x) and math.isfinite(y):
                axes.annotate(
                    name,
                    (x, y),
                    xytext=(7, 0),
                    textcoords="offset points",
                    color=tint,
                    va="center",
                )
    else:
        legend(figure, runs)
    return write_chart(
        figure,
        "runs-trajectory",
        "Forget against retain loss",
        "Up is better forgotten, left is better kept. Ring: the model at the start; solid: "
        "unlearning; dotted: relearning, to the large mark at its end. The retain-loss budget "
        "binds while unlearning.",
    )


def budget_lines(axes: Axes, runs: Sequence[Run]) -> None:
    """The retain loss beyond which a run is rejected."""
    limits = set()
    for run in runs:
        try:
            budget = float(run.config.get("unlearn.retain_loss_budget", "nan"))
        except ValueError:  # null
            continue
        if run.unlearning and len(run.unlearning) > 1:
            limits.add(round(run.unlearning[0].retain + budget, 4))
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


def attack_curves(runs: Sequence[Run]) -> Chart | None:
    """Forget loss, and the accuracy of each question set, against relearning steps."""
    if not any(run.attacks for run in runs):
        return None
    kinds: list[tuple[str, Callable[[Point], float]]] = [("Forget loss (nats)", lambda p: p.forget)]
    for name in dict.fromkeys(name for run in runs for name in run.questions()):
        kinds.append((f"Accuracy on {name}", lambda p, name=name: p.accuracy.get(name, math.nan)))
    figure, grid = panels(len(kinds), 2, 3.2, sharex=True)
    all_ends = []
    for axes, (label, value) in zip(grid, kinds):
        all_ends.append(attack_lines(axes, runs, "step", value))
        axes.set_ylabel(label)
        axes.set_xlabel("Relearning steps")
        if label.startswith("Accuracy"):
            axes.set_ylim(0, 1.03)
        else:
            log_if_wide(axes, [value(p) for run in runs for p in run.points(unlearning=False)])
        plain_numbers(axes)
    if len(grid) == 2:  # the labels beside the right panel serve the left one too
        name_lines(figure, runs, grid[1:], all_ends[1:])
    else:
        name_lines(figure, runs, grid, all_ends)
    return write_chart(
        figure,
        "runs-attacks",
        "Attack curves",
        "What fine-tuning brings back, against its steps; step 0 is the unlearned model. A higher "
        "loss and a lower accuracy at the end are better forgotten.",
    )


def loop_curves(runs: Sequence[Run]) -> Chart | None:
    """Mask fraction, gradient norm and the batch losses of each loop."""
    if not any(run.phase("unlearn") for run in runs):
        return None
    kinds = [
        ("mask_fraction", "Share of weights kept by the mask"),
        ("grad_norm", "Norm of the unlearning gradient"),
        ("adversary_loss", "Adversary's forget loss (nats)"),
        ("retain_loss", "Retain loss on its batch (nats)"),
    ]
    figure, grid = panels(len(kinds), 2, 2.5, sharex=True)
    drawn = [(index, run) for index, run in enumerate(runs) if run.phase("unlearn")]
    for axes, (key, label) in zip(grid, kinds):
        values: list[float] = []
        for index, run in drawn:
            lines = run.phase("unlearn")
            loops, column = (
                [number(line, "loop") for line in lines],
                [number(line, key) for line in lines],
            )
            axes.plot(
                loops,
                column,
                color=color(index),
                linewidth=1.1,
                label=run.name,
                marker=marker(index) if len(lines) < 3 else None,
            )
            values += column
        axes.set_title(label, fontweight="normal")
        if key == "mask_fraction":
            axes.set_ylim(0, 1.03)
        else:
            log_if_wide(axes, values)
        plain_numbers(axes)
    for axes in grid[-2:]:
        axes.set_xlabel("Loop")
    if len(drawn) > 1 or len(runs) > 1:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return write_chart(
        figure,
        "runs-loops",
        "Every loop of unlearning",
        "The mask's share is 1 where masking is off. The norm is the one that divides the "
        "gradient. Both losses are on the loop's training batch; the adversary's falls until it is "
        "forked again.",
    )
