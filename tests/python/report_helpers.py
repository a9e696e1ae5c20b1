"""Run folders to report of, and what a report's page and pictures hold."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

import report
import report_charts

CONFIG = """\
seed: {seed}
unlearn: {{unlearning_rate: {rate}, use_masking: true, retain_loss_budget: 0.05}}
output: {{dir: /somewhere/{seed}}}
"""


def evaluation(at: str, passes: int, forget: float | None, retain: float, **more: Any) -> dict:
    return {
        "phase": "eval",
        "at": at,
        "passes": passes,
        "forget_loss": forget,
        "retain_loss": retain,
        **more,
    }


def unlearning(rise: float) -> list[dict]:
    """The start and four loops with an evaluation after every second."""
    lines = [evaluation("start", 0, 1.25, 2.0, accuracy_facts=1.0, kl=0)]
    for loop in range(4):
        lines.append(
            {
                "phase": "unlearn",
                "loop": loop,
                "passes": 5 * loop + 5,
                "retain_loss": 2.0,
                "adversary_loss": 1.0,
                "grad_norm": 0.1 * loop + 0.1,
                "mask_fraction": 0.5,
            }
        )
        if loop % 2:
            passes = 5 * loop + 5
            lines.append(
                evaluation(
                    "unlearn", passes, 1.25 + rise * loop, 2.01, accuracy_facts=0.5, kl=0.001 * loop
                )
            )
    return lines


def attack(begin: float, steps: int, passes_a_step: int = 2, **name: str) -> list[dict]:
    """Relearning with an evaluation after every second step."""
    lines: list[dict] = []
    for step in range(steps):
        lines.append({"phase": "relearn", "step": step, "loss": begin, **name})
        if step % 2:
            passes = passes_a_step * (step + 1)
            lines.append(evaluation("relearn", passes, begin - 0.0625 * step, 2.02, **name))
    return lines


def result(score: float | None, status: str = "done", reason: str = "") -> dict:
    return {
        "phase": "result",
        "status": status,
        "reason": reason,
        "score": score,
        "peak_bytes": 3 << 20,
        "seconds": 12.5,
    }


def write_run(folder: Path, lines: Sequence[dict | str], seed: int = 1, rate: str = "0.1") -> Path:
    """A run folder; a string is a line as it is."""
    folder.mkdir(parents=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(text) + "\n")
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, rate=rate))
    return folder


def tables(page: str) -> list[list[list[str]]]:
    """The page's tables as cells."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found.append(
            [[html.unescape(cell).replace("\u00a0", " ") for cell in row] for row in cells]
        )
    return found


def check_pictures(out: Path) -> set[str]:
    """The page holds exactly the PNG files beside it, none of them blank, and fetches nothing."""
    page = (out / "report.html").read_text()
    inside = {base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)}
    beside = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert inside == set(beside.values()) and len(inside) == len(beside)
    for name in beside:
        picture = imread(out / name)[..., :3]
        assert picture.shape[1] > 1000 and picture.std() > 0.03, name
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,20})", page)
    assert all(source.startswith("data:image/png;") for source in sources)
    assert not re.search(r"<script\s|<link|@import|url\(|https?://", page)
    return set(beside)


def make_report(out: Path, *arguments: object) -> str:
    assert report.main([*map(str, arguments), "--out", str(out)]) == 0
    return (out / "report.html").read_text()


def count_color(picture: Path, index: int) -> np.ndarray:
    """How many pixels of a row are of the index-th colour."""
    wanted = np.array(matplotlib.colors.to_rgb(report_charts.color(index)))
    return (abs(imread(picture)[..., :3] - wanted) < 0.01).all(axis=2).sum(axis=1)


def texts(figure: Figure) -> list[Text]:
    """The texts that a figure shows; those of ticks beyond an axis are not."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.majorTicks, *axis.minorTicks]
        hidden |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def meetings(figure: Figure) -> list[str]:
    """Texts of a figure that lie on one another, or that its edge cuts."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    met = [
        f"{a} on {b}"
        for i, (a, box) in enumerate(boxes)
        for b, other in boxes[:i]
        if box.overlaps(other)
    ]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            met.append(f"{text} beyond the edge")
    return met
