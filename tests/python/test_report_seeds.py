"""report.py on runs that differ by their seed alone: one line, its mean and its standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import report_run_charts
import report_runs
import report_seeds
from report_helpers import (
    attack,
    check_pictures,
    make_report,
    meetings,
    result,
    tables,
    write_run,
)
from report_helpers import evaluation as evaluated

ENDS = (2.0, 2.5, 2.75)
MEAN, ERROR = np.mean(ENDS), np.std(ENDS, ddof=1) / math.sqrt(3)


def lines(end: float, hashes: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """A run that unlearns to `end` and relearns to a quarter less."""
    start = evaluated("start", 0, 1.25, 2.0, accuracy_facts=1.0)
    unlearned = evaluated("unlearn", 10, end, 2.0 + end / 100, accuracy_facts=end / 10)
    told = result(end - 0.1875) | ({"identity": dict(hashes)} if hashes else {})
    return [start, unlearned, *attack(end, 4), told]


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / f"mudman-{i}", lines(end), seed=i) for i, end in enumerate(ENDS, 1)
    ]


def test_mean_and_standard_error(seeds: list[Path], tmp_path: Path) -> None:
    """In the tables, of values and of changes; each run by itself comes last."""
    other = write_run(tmp_path / "other", lines(3.0), rate="0.2")
    found = tables(make_report(tmp_path / "out", *seeds, other))
    head, row, alone = found[0]
    words = "mudman (n = 3)"
    score = f"{MEAN - 0.1875:.3f} ± {ERROR:.3f}"
    assert row[:6] == [words, "3 done", score, "1.250", f"{MEAN:.3f} ± {ERROR:.3f}", score]
    assert alone[:5] == ["other", "done", "2.812", "1.250", "3.000"]
    harm = {(line[0], line[1]): line[2:] for line in found[1][1:]}
    retain = f"{2 + MEAN / 100:.3f} ± {ERROR / 100:.3f}"
    change = f"+{MEAN / 100:.3f} ± {ERROR / 100:.3f}"
    assert harm[words, "retain loss (nats)"] == ["2.000", retain, change, "2.020", "+0.020"]
    assert harm[words, "accuracy on facts"][2] == f"{MEAN / 10 - 1:.3f} ± {ERROR / 10:.3f}"
    assert found[2][0] == ["key", words, "other"] and found[2][1] == ["seed", "1, 2, 3", "1"]
    assert [line[0] for line in found[3][1:]] == ["mudman-1", "mudman-2", "mudman-3", "other"]
    assert "runs-scores.png" in check_pictures(tmp_path / "out")


def test_one_line_with_a_band(seeds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack curves go through the mean, and their band is one standard error to either side."""
    drawn: list[tuple[str, list[float], list[float]]] = []
    for name in ("plot", "fill_between"):
        whole = getattr(Axes, name)

        def record(self: Axes, x: Any, *y: Any, name: str = name, whole: Any = whole, **k: Any):
            if self.get_ylabel() == "" and len(x) == 3:
                drawn.append((name, list(x), [list(values) for values in y]))
            return whole(self, x, *y, **k)

        monkeypatch.setattr(Axes, name, record)
    (series,) = report_seeds.group_by_seed(report_runs.read_runs(seeds))
    assert report_run_charts.attack_curves([series])
    curve = [MEAN, MEAN - 0.0625, MEAN - 0.1875]
    (_, steps, (values,)), (_, _, (low, high)) = drawn[:2]
    assert [name for name, _, _ in drawn[:2]] == ["plot", "fill_between"]
    assert steps == [0, 2, 4] and values == pytest.approx(curve)
    assert low == pytest.approx([y - ERROR for y in curve])
    assert high == pytest.approx([y + ERROR for y in curve])


def names(*folders: Path) -> list[str]:
    return [one.label for one in report_seeds.group_by_seed(report_runs.read_runs(folders))]


def test_what_is_together(tmp_path: Path) -> None:
    """Settings, inputs and another seed; where results, speed and safety go is aside."""
    hashes = {"program": "1", "weights": "w", "data.forget": "f"}
    a = write_run(tmp_path / "a-seed1", lines(2.0, hashes), seed=1)
    b = write_run(tmp_path / "a-seed2", lines(2.1, hashes | {"program": "2"}), seed=2)
    assert names(a, b) == ["a (n = 2)"]
    again = write_run(tmp_path / "a-again", lines(2.0, hashes), seed=1)
    assert names(a, b, again) == ["a (n = 2)", "a-again"], "a seed twice is no second sample"
    rate = write_run(tmp_path / "a-seed3", lines(2.0, hashes), seed=3, rate="0.2")
    model = write_run(tmp_path / "a-seed4", lines(2.0, hashes | {"weights": "v"}), seed=4)
    assert names(a, rate, model) == ["a-seed1", "a-seed3", "a-seed4"]
    for folder, text in (
        (a, "device: cpu\ndata: {forget: /here/f.h5, micro_batch: 8}\n"),
        (b, "device: cuda\ndata: {forget: /there/f.h5, micro_batch: 4}\n"),
    ):
        with (folder / "config.yaml").open("a") as file:
            file.write(text)
    assert names(a, b) == ["a (n = 2)"]
    for folder in (a, b):  # as if they were not finished: only places tell
        (folder / "metrics.jsonl").write_text(json.dumps(lines(2.0)[0]) + "\n")
    assert names(a, b) == ["a-seed1", "a-seed2"]


def test_seeds_that_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [write_run(tmp_path / f"run{i}", lines(2.0), seed=i) for i in (1, 2)]
    make_report(tmp_path / "out", *same)
    assert "run (n = 2): all seeds gave the same figures" in capsys.readouterr().err


def test_what_a_seed_lacks(seeds: list[Path], tmp_path: Path) -> None:
    """A rejected run is counted and has no part in the attack; a diverged attack has none either."""
    whole = seeds[0] / "metrics.jsonl"
    reason = "retain loss 9 exceeds 2.05"
    kept = [json.loads(line) for line in whole.read_text().splitlines()[:2]]
    whole.write_text("\n".join(map(json.dumps, [*kept, result(None, "rejected", reason)])) + "\n")
    row = tables(make_report(tmp_path / "out", *seeds))[0][1]
    error = np.std(ENDS[1:], ddof=1) / math.sqrt(2)
    assert row[1] == "1 rejected, 2 done"
    assert row[2] == f"{np.mean(ENDS[1:]) - 0.1875:.3f} ± {error:.3f} (n = 2)"
    (series,) = report_seeds.group_by_seed(report_runs.read_runs(seeds))
    assert (series.unlearning.n, series.attacks[""].n) == (3, 2)
    assert report_run_charts.attack_name(series, "") == "mudman (n = 2 of 3)"
    told = json.loads((seeds[1] / "metrics.jsonl").read_text().splitlines()[-1])
    with (seeds[1] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(told | {"diverged_": "the loss is not finite"}) + "\n")
    (series,) = report_seeds.group_by_seed(report_runs.read_runs(seeds))
    assert series.attacks[""].n == 1


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["mudman-seed-1", "mudman-seed-2"], "mudman"),
        (["mudman-10", "mudman-11"], "mudman"),
        (["rank16-1", "rank16-2"], "rank16"),
        (["seed1/mudman", "seed2/mudman"], "mudman"),
        (["mudman_s7", "mudman_s8"], "mudman"),
        (["two-adapters-1", "two-adapters-2"], "two-adapters"),
        (["s1", "s2"], ""),
        (["1", "2"], ""),
    ],
)
def test_common_names(given: list[str], name: str) -> None:
    assert report_seeds.common_name(given) == name


def test_runs_named_by_numbers_alone(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(i), lines(2.0 + i), seed=i) for i in (1, 2)]
    assert names(*folders) == ["1 (n = 2)"]


def test_labels_do_not_meet(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text of a chart lies on another or beyond the picture, with names of some length."""
    met: list[str] = []
    save = Figure.savefig

    def look(self: Figure, *arguments: Any, **keys: Any) -> None:
        met.extend(meetings(self))
        save(self, *arguments, **keys)

    monkeypatch.setattr(Figure, "savefig", look)
    several = [*lines(2.0)[:2]]
    for name in ("sgd", "adamw", "lora-of-rank-16"):
        several += attack(2.0, 6, attack=name)
    others = [
        write_run(tmp_path / f"no-adversary-no-mask-{i}", [*several, result(1.7)], i, "0.3")
        for i in (1, 2)
    ]
    make_report(tmp_path / "one", *seeds, write_run(tmp_path / "relearning-only", lines(2.6)))
    assert met == []
    make_report(tmp_path / "several", *seeds, *others)
    assert met == []
