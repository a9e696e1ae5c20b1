"""Run folders in a report: what metrics.jsonl and config.yaml hold, and the tables of them.

A run may be in progress, rejected or without one of its phases; a value may be null. What is
missing is left out of a chart and shown as a dash in a table. A line that cannot be read is named
in the notes and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from identities import inputs
from report_page import Table
from text_records import InputError
from yaml_reader import read_texts

ACCURACY = "accuracy_"
Line = dict[str, Any]


@dataclass
class Point:
    """One evaluation; within a phase, passes and relearning steps count from its start."""

    passes: float
    step: float
    forget: float
    retain: float
    accuracy: dict[str, float]


@dataclass
class Run:
    """A run folder as read. Attacks are named by their lines' "attack", "" where there is none."""

    name: str
    folder: Path
    config: dict[str, str]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    unlearning: list[Point] = field(default_factory=list)  # begins with the start's evaluation
    attacks: dict[str, list[Point]] = field(default_factory=dict)  # each begins before the attack

    @property
    def result(self) -> Line:
        """The last line of a finished run, else nothing."""
        return next((line for line in reversed(self.lines) if line.get("phase") == "result"), {})

    def phase(self, name: str) -> list[Line]:
        """The lines of a phase."""
        return [line for line in self.lines if line.get("phase") == name]

    def points(self, unlearning: bool = True) -> list[Point]:
        """The evaluations of the run, or of its attacks only."""
        first = self.unlearning if unlearning else []
        return first + [point for points in self.attacks.values() for point in points]

    def questions(self) -> list[str]:
        """The names of the question sets that were evaluated."""
        keys = [key for line in self.phase("eval") for key in line if key.startswith(ACCURACY)]
        return [key.removeprefix(ACCURACY) for key in dict.fromkeys(keys)]


def number(line: Line, key: str) -> float:
    """A field as a number; not a number where it is missing, null or something else."""
    value = line.get(key)
    return float(value) if type(value) in (int, float) else math.nan


def read_metrics(path: Path, notes: list[str]) -> list[Line]:
    """The objects of a metrics file; a damaged line is noted and left out."""
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for at, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            line = json.loads(written)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            notes.append(f"{path}:{at}: not a JSON object, left out")
    return lines


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """A config as dotted keys and the text of their values."""
    if not isinstance(tree, dict):
        return {prefix: tree if isinstance(tree, str) else json.dumps(tree)}
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def read_config(path: Path, notes: list[str]) -> dict[str, str]:
    """The run's config with every value as it was written; empty, and noted, where unreadable."""
    try:
        return flatten(read_texts(path))
    except InputError as error:
        reason = str(error).removeprefix(f"{path}:").strip()
        notes.append(f"{path}: {reason}; its settings are not shown")
        return {}


def point(line: Line, passes: float, step: float) -> Point:
    """An evaluation line as a point."""
    accuracy = {k.removeprefix(ACCURACY): number(line, k) for k in line if k.startswith(ACCURACY)}
    return Point(passes, step, number(line, "forget_loss"), number(line, "retain_loss"), accuracy)


def follow(run: Run) -> None:
    """Sort the evaluations into the unlearning phase and the attacks.

    The steps of an attack at an evaluation are those its lines before it say: passes a step differ
    between kinds of attack.
    """
    steps: dict[str, float] = {}
    for line in run.lines:
        phase, at, attack = line.get("phase"), line.get("at"), str(line.get("attack", ""))
        if phase == "relearn":
            steps[attack] = number(line, "step") + 1
        elif phase == "eval" and at in ("start", "unlearn"):
            if at == "start":  # of a resume that evaluates otherwise, what was before compares not
                run.unlearning.clear()
            run.unlearning.append(point(line, number(line, "passes"), math.nan))
        elif phase == "eval" and at == "kept":  # what came after it is no part of the result
            kept = number(line, "passes")
            run.unlearning[:] = [p for p in run.unlearning if p.passes <= kept]
        elif phase == "eval" and at == "relearn":
            if attack not in run.attacks:
                before = run.unlearning[-1:]
                run.attacks[attack] = [Point(0, 0, p.forget, p.retain, p.accuracy) for p in before]
            done = number(line, "step") if "step" in line else steps.get(attack, math.nan)
            run.attacks[attack].append(point(line, number(line, "passes"), done))


def read_run(folder: Path) -> Run:
    """Read a run folder."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise InputError(f"{folder}: not a run folder: it holds no metrics.jsonl")
    notes: list[str] = []
    try:
        lines = read_metrics(metrics, notes)
    except OSError as error:
        raise InputError(f"{metrics}: {error.strerror}") from error
    run = Run(
        folder.resolve().name, folder, read_config(folder / "config.yaml", notes), lines, notes
    )
    follow(run)
    if not any(line.get("phase") in ("unlearn", "relearn", "eval", "result") for line in lines):
        has = "only lines of pretraining" if run.phase("pretrain") else "no line"
        notes.append(f"{metrics}: {has}; the run is not drawn")
    return run


def refuse_mixture(runs: Sequence[Run]) -> None:
    """A path that two runs name alike must have held the same for both: what the settings show as
    different is for the reader to judge, a file that was changed between the runs is not."""
    seen: dict[tuple[str, str], tuple[str, Run]] = {}
    for run in runs:
        for name, value in inputs(run.result.get("identity")).items():
            kind = "evaluate.multiple_choice" if name.startswith("evaluate.") else name
            path = run.config.get(kind if kind.startswith(("data.", "evaluate.")) else "model.path")
            if path is None:
                continue
            before, other = seen.setdefault((name, path), (value, run))
            if before != value:
                raise InputError(
                    f"{other.folder} and {run.folder} stand on different {name}, though both name "
                    f"{path} (hash {before} and {value}): they do not compare: report them apart"
                )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; those of the same name get as much of their paths as tells them apart."""
    unique = list({folder.resolve(): folder for folder in folders}.values())
    runs = [read_run(folder) for folder in unique]
    for depth in range(2, 64):
        names = [run.name for run in runs]
        repeated = [run for run in runs if names.count(run.name) > 1]
        if not repeated:
            break
        for run in repeated:
            run.name = "/".join(run.folder.resolve().parts[-depth:])
    refuse_mixture(runs)
    return runs


def shown(value: float, digits: int = 3) -> str:
    """A number in a table, or a dash."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def status(run: Run) -> str:
    """How the run ended, or how far it has come."""
    result = run.result
    if result:
        reason = result.get("reason") or ""
        return f"{result.get('status')}{': ' if reason else ''}{reason}"
    last = next((line for line in reversed(run.lines) if line.get("phase") != "eval"), None)
    if last is None:
        return "no result yet"
    place = "unlearning, loop" if last.get("phase") == "unlearn" else f"{last.get('phase')}, step"
    return f"no result yet ({place} {last.get('loop', last.get('step'))})"


def stages(run: Run) -> list[Point | None]:
    """The evaluations at the start, after unlearning and after relearning, where there are any.

    Of several attacks the strongest counts: the one that ends with the lowest forget loss and did
    not diverge.
    """
    start = run.unlearning[0] if run.unlearning else None
    unlearned = run.unlearning[-1] if len(run.unlearning) > 1 else None
    ends = [
        points[-1]
        for name, points in run.attacks.items()
        if len(points) > 1 and run.result.get(f"diverged_{name}") is None
    ]
    ends = [end for end in ends if math.isfinite(end.forget)]
    return [start, unlearned, min(ends, key=lambda end: end.forget, default=None)]


def shown_score(run: Run) -> str:
    """The score; that of attacks that only raised the forget loss says so."""
    score = number(run.result, "score")
    before = run.unlearning[-1].forget if run.unlearning else math.nan
    return shown(score) + (", above the loss before the attack" if score > before else "")


def summary(runs: Sequence[Run]) -> Table:
    """Losses at the start, after unlearning and after relearning, and what the run took."""
    head = ["run", "status", "score", "forget: start", "unlearned", "relearned"]
    head += ["retain: start", "unlearned", "relearned", "memory of a rank", "time"]
    rows = []
    for run in runs:
        row = [run.name, status(run), shown_score(run)]
        row += [shown(stage.forget) if stage else "–" for stage in stages(run)]
        row += [shown(stage.retain) if stage else "–" for stage in stages(run)]
        peak, seconds = number(run.result, "peak_bytes"), number(run.result, "seconds")
        row += [f"{peak / 2**20:.0f} MiB" if math.isfinite(peak) else "–"]
        row += [f"{seconds:.1f} s" if math.isfinite(seconds) else "–"]
        rows.append(row)
    caption = (
        "Losses in nats a token on the evaluation batches; higher forget loss is better forgotten, "
        "lower retain loss better kept. Score: by default the lowest forget loss at any evaluation "
        "of relearning. Relearned: at the end of relearning"
    )
    several = any(len(run.attacks) > 1 for run in runs)
    caption += ", by the attack that ends with the lowest forget loss." if several else "."
    return Table("Results", caption, head, rows, frozenset({1}))


def accuracies(runs: Sequence[Run]) -> Table | None:
    """The accuracy of every question set at the same three times."""
    rows = []
    for run in runs:
        for name in run.questions():
            values = [
                stage.accuracy.get(name, math.nan) if stage else math.nan for stage in stages(run)
            ]
            rows.append([run.name, name, *map(shown, values)])
    if not rows:
        return None
    head = ["run", "questions", "start", "unlearned", "relearned"]
    caption = (
        "At temperature 0 the share answered right, at temperature 1 the mean probability of the "
        "right answer."
    )
    return Table("Accuracy", caption, head, rows, frozenset({1}))


def differences(runs: Sequence[Run]) -> Table | None:
    """The settings that differ between the runs; none of one run or of equal ones."""
    known = [run for run in runs if run.config]
    keys = dict.fromkeys(key for run in known for key in run.config)
    rows = []
    for key in keys:
        values = [run.config.get(key, "–") for run in known]
        if key != "output.dir" and len(set(values)) > 1:
            rows.append([key, *("–" if value == "null" else value for value in values)])
    if not rows:
        return None
    head = ["key", *(run.name for run in known)]
    columns = frozenset(range(1, len(head)))
    return Table("Settings that differ", "From each run's config.yaml.", head, rows, columns)
