"""What the charts of a report share: colours, fonts, axes, labels at line ends, PNG files.

A figure is 7.2 inches wide and is read at the width of a page; text is 9 points, so that it is
still read on a phone held sideways. Colours are Okabe and Ito's less their yellow, which is hard
to see on white: they differ for colour-blind readers, and markers differ too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C6D46")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINE_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
BASELINE_COLOR = "#555555"
FAINT_COLOR = "#999999"
WIDTH = 7.2  # inches
DOTS_PER_INCH = 160
DIRECT_LABELS = 4  # more lines than that get a legend
LABEL_HEIGHT = 0.16  # inches: the least distance of two labels at line ends
LOG_RATIO = 20  # a wider span of values is drawn on a log axis

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "axes.labelcolor": "#333333",
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.7,
        "xtick.color": "#666666",
        "ytick.color": "#666666",
        "xtick.labelcolor": "#333333",
        "ytick.labelcolor": "#333333",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
    }
)


@dataclass(frozen=True)
class Chart:
    """A finished picture: its file's name, what it shows in words, and the PNG itself."""

    name: str
    title: str
    caption: str
    png: bytes


def color(index: int) -> str:
    """The colour of the index-th run or variant, the same in every chart."""
    return COLORS[index % len(COLORS)]


def marker(index: int) -> str:
    """Its marker; with more than eight series the pair of both still differs."""
    return MARKERS[(index + index // len(COLORS)) % len(MARKERS)]


def new_figure(height: float) -> Figure:
    """A figure of a page's width and `height` inches; its panels are placed when it is written."""
    return Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")


def panels(count: int, columns: int, height: float, **shared: bool) -> tuple[Figure, list[Axes]]:
    """`count` panels in rows of `columns`, each row `height` inches high; the rest stays empty."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(rows * height)
    grid = figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for unused in grid[count:]:
        unused.remove()
    if shared.get("sharex"):  # a panel above an empty place keeps its numbers
        for axes in grid[max(count - columns, 0) : count]:
            axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def write_chart(figure: Figure, name: str, title: str, caption: str) -> Chart:
    """Render the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Chart(name, title, caption, buffer.getvalue())


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]


def log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """A log y axis where the values span more than a linear one can show."""
    shown = finite(values)
    if shown and min(shown) > 0 and max(shown) > LOG_RATIO * min(shown):
        axes.set_yscale("log")
        plain_log_ticks(axes, "y", min(shown), max(shown))
        axes.set_ylabel(f"{axes.get_ylabel()}, log scale" if axes.get_ylabel() else "log scale")


def plain_log_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """Few ticks on a log axis: powers of ten where two or more fit, else ends and middle."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    step = math.ceil(len(powers) / 4)
    ticks = [10.0**power for power in powers][:: step or 1]
    if len(ticks) < 2:
        ticks = [low, math.sqrt(low * high), high]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def short_number(value: float) -> str:
    """Two digits, as 0.03 or 3e-5."""
    text = f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.2g}"
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}" if exponent else text


def plain_numbers(axes: Axes) -> None:
    """Tick labels without an offset or a factor written elsewhere."""
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), ScalarFormatter):
            axis.get_major_formatter().set_useOffset(False)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end (x, y, name, colour), moved apart where they meet."""
    to_panel = axes.transData + axes.transAxes.inverted()
    places = []
    for x, y, name, tint in ends:
        if math.isfinite(x) and math.isfinite(y):
            places.append([to_panel.transform((x, y))[1], x, y, name, tint])
    places.sort(key=lambda place: place[0])
    height = LABEL_HEIGHT / (axes.get_position().height * axes.figure.get_figheight())
    # Each label is pushed up past the one below; then all move down by half of the overshoot.
    moved: list[float] = []
    for place in places:
        moved.append(max(place[0], moved[-1] + height) if moved else place[0])
    overshoot = max((at - place[0] for at, place in zip(moved, places)), default=0.0)
    for at, (_, x, y, name, tint) in zip(moved, places):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.02, at - overshoot / 2),
            textcoords="axes fraction",
            color=tint,
            va="center",
            annotation_clip=False,
        )


def bar(
    axes: Axes, at: int, mean: float, error: float, words: str, tint: str, nothing: str
) -> None:
    """A bar in row `at` with its error, unless that is not a number, and words beside it; in place
    of a mean that is not a number, `nothing`."""
    if not math.isfinite(mean):
        axes.text(0, at, f"  {nothing}", va="center", color="#888888")
        return
    axes.barh(at, mean, height=0.62, color=tint)
    end = mean
    if math.isfinite(error):
        axes.errorbar(mean, at, xerr=error, color="#222222", capsize=3, linewidth=1.2)
        end += error
    axes.annotate(words, (end, at), xytext=(6, 0), textcoords="offset points", va="center")


def baseline(axes: Axes, value: float, label: str = "", vertical: bool = False) -> None:
    """The dashed line of the relearning-only score."""
    draw = axes.axvline if vertical else axes.axhline
    draw(
        value,
        color=BASELINE_COLOR,
        linestyle="--",
        linewidth=1.1,
        zorder=1.5,
        label=label or None,
    )
