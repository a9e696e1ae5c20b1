"""Run folders in a report: what metrics.jsonl and config.yaml hold.

A run may be in progress, rejected or without one of its phases; a value may be null. What is
missing is left out of a chart and shown as a dash in a table. A line that cannot be read is named
in the notes and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from identities import inputs
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
    kl: float = math.nan  # from the model at the start, where it was measured


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
    losses = number(line, "forget_loss"), number(line, "retain_loss")
    return Point(passes, step, *losses, accuracy, number(line, "kl"))


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
                run.attacks[attack] = [replace(p, passes=0, step=0) for p in before]
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
