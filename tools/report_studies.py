"""Hyperparameter searches in a report: the studies that tools/search.py keeps in an Optuna storage.

A study is one variant of a search; its name is "<search>-<variant>". The reported score is the
mean of the last N completed trials with its standard error std / sqrt(n), std with divisor n
(docs/method.md 9). Storages are only read.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import sqlite3
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from identities import changed_setting, difference, inputs
from report_page import Table
from text_records import InputError

optuna.logging.set_verbosity(optuna.logging.WARNING)

STORAGE_HELP = """\
A storage of studies is an SQLite file, an Optuna journal file, or what search.py --storage takes
(sqlite:///PATH, journal:PATH, mysql://..., postgresql://...). It is only read; a search may go on.
"""
SQLITE_MAGIC = b"SQLite format 3\0"
LAST_TRIALS = 30
EDGE = 0.1  # of a range: a best value nearer to its end than that asks for a wider range


@dataclass(frozen=True)
class Range:
    """A hyperparameter's range in its search."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1; on a log scale where the search used one."""
        if self.high <= self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass
class Variant:
    """One study as read; `completed` are the trials with a score, in their order."""

    search: str
    name: str
    study: optuna.Study
    maximize: bool
    baseline: float
    ranges: dict[str, Range]
    trials: list[FrozenTrial]
    completed: list[FrozenTrial] = field(default_factory=list)

    def count(self, state: TrialState) -> int:
        """How many trials ended so."""
        return sum(trial.state == state for trial in self.trials)

    def scores(self, last: int | None = None) -> list[float]:
        """Scores of the completed trials, or of the last of them."""
        return [score(trial) for trial in (self.completed[-last:] if last else self.completed)]

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best score."""
        choose = max if self.maximize else min
        return choose(self.completed, key=score, default=None)


def score(trial: FrozenTrial) -> float:
    """The score of a completed trial."""
    return float(trial.values[0])


def mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean; not numbers for no score."""
    if not scores:
        return math.nan, math.nan
    return statistics.fmean(scores), statistics.pstdev(scores) / math.sqrt(len(scores))


def open_file(path: Path) -> BaseStorage:
    """Open a storage file by what it holds; nothing is created."""
    try:
        with path.open("rb") as file:
            head = file.readline(1 << 16)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if head.startswith(SQLITE_MAGIC):
        path = writable(path)
        check_sqlite(path)
        return RDBStorage(f"sqlite:///{path.resolve()}", skip_table_creation=True)
    try:
        is_journal = "op_code" in json.loads(head)
    except (ValueError, TypeError):
        is_journal = False
    if not is_journal:
        raise InputError(f"{path}: neither a run folder nor an Optuna storage (SQLite or journal)")
    return JournalStorage(JournalFileBackend(str(path)))


def writable(path: Path) -> Path:
    """The database where SQLite can open it: on a read-only mount a copy, for SQLite writes beside
    it even to read, and the newest trials may lie in the file beside it."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return path
    folder = Path(tempfile.mkdtemp(prefix="report-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for part in (path, path.with_name(f"{path.name}-wal")):
        if part.is_file():
            (folder / part.name).write_bytes(part.read_bytes())
    return folder / path.name


def check_sqlite(path: Path) -> None:
    """Optuna's message about a database of something else is long; this one is not."""
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as connection:
            connection.execute("select 1 from studies limit 1")
    except sqlite3.Error as error:
        raise InputError(f"{path}: not an Optuna storage: {error}") from error


def open_storage(source: str) -> BaseStorage:
    """Open a storage from its path or URL."""
    for prefix in ("sqlite:///", "journal:"):
        source = source.removeprefix(prefix)
    if "://" not in source:
        return open_file(Path(source))
    return RDBStorage(source, skip_table_creation=True)


def read_ranges(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, Range]:
    """The ranges as the search wrote them, else as the newest trial had them."""
    ranges = {}
    for trial in trials:
        for name, kind in trial.distributions.items():
            if not isinstance(kind, optuna.distributions.CategoricalDistribution):
                ranges[name] = Range(float(kind.low), float(kind.high), bool(kind.log))
    written = study.user_attrs.get("parameters")
    for name, given in (written if isinstance(written, dict) else {}).items():
        try:
            ranges[name] = Range(float(given["low"]), float(given["high"]), bool(given.get("log")))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # the trials' own range serves
    return ranges


def read_variant(study: optuna.Study) -> Variant:
    """Read one study."""
    trials = study.get_trials(deepcopy=False)
    name = str(study.user_attrs.get("variant", ""))
    search = study.study_name.removesuffix(f"-{name}") if name else study.study_name
    given = study.user_attrs.get("baseline_score")
    variant = Variant(
        search=search,
        name=name or study.study_name,
        study=study,
        maximize=study.direction == optuna.study.StudyDirection.MAXIMIZE,
        baseline=float(given) if type(given) in (int, float) else math.nan,
        ranges=read_ranges(study, trials),
        trials=trials,
    )
    for trial in trials:
        if trial.state == TrialState.COMPLETE and math.isfinite(score(trial)):
            variant.completed.append(trial)
    return variant


def read_storage(source: str) -> tuple[list[Variant], list[str]]:
    """All studies of a storage, and what is to be remarked."""
    variants, notes = [], []
    try:
        storage = open_storage(source)
        for stored in storage.get_all_studies():
            study = optuna.load_study(study_name=stored.study_name, storage=storage)
            if len(study.directions) > 1:
                notes.append(f"study {stored.study_name}: has several objectives, left out")
            else:
                variants.append(read_variant(study))
    except InputError:
        raise
    except Exception as error:  # of Optuna, SQLAlchemy or a database driver: many kinds
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{source}: cannot be read: {type(error).__name__}: {reason}") from error
    if not variants and not notes:
        raise InputError(f"{source}: holds no study")
    return variants, notes


def refuse_mixture(variants: Sequence[Variant]) -> None:
    """Trials of one study, and variants of one search, compare only if they stand on the same
    inputs, and the variants on the same settings beside those that they vary."""
    first: dict[str, Variant] = {}
    for variant in variants:
        attributes = variant.study.user_attrs
        own, name = inputs(attributes.get("base_identity")), variant.study.study_name
        for trial in variant.completed:
            given = inputs(trial.user_attrs.get("identity"))
            own = own or given
            if key := difference(own, given):
                raise InputError(
                    f"study {name}: trial {trial.number} stands on another {key} than the trials "
                    f"before ({given.get(key)}, not {own.get(key)}): they do not compare"
                )
        other = first.setdefault(variant.search, variant).study
        for kind, part, compare in (
            ("base_identity", inputs, difference),
            ("base_settings", dict, changed_setting),
        ):
            left = part(other.user_attrs.get(kind) or {})
            right = part(attributes.get(kind) or {})
            if key := compare(left, right):
                raise InputError(
                    f"studies {other.study_name} and {name} of one search stand on different "
                    f"{key} ({left.get(key)} and {right.get(key)}): they do not compare: report "
                    "one at a time with --study"
                )


def wanted(variants: Sequence[Variant], names: Sequence[str]) -> list[Variant]:
    """The studies asked for by their own name or their search's; all where none is named."""
    for name in names:
        if not any(name in (v.search, v.study.study_name) for v in variants):
            known = ", ".join(sorted(v.study.study_name for v in variants)) or "none"
            raise InputError(f"--study {name}: no such study or search; there is {known}")
    return [v for v in variants if not names or {v.search, v.study.study_name} & set(names)]


def measure(variants: Sequence[Variant]) -> str:
    """What the score is, by the name that the search gave its objective."""
    objective = str(variants[0].study.user_attrs.get("objective", "score"))
    if objective.startswith("accuracy_"):
        return f"Accuracy on {objective.removeprefix('accuracy_')} after relearning"
    if objective == "score" and variants[0].maximize:
        return "Forget loss after relearning (nats a token)"
    return f"{objective.replace('_', ' ').capitalize()} of a trial"


def last_trials(variants: Sequence[Variant]) -> int:
    """How many trials the search itself takes the mean of, else the paper's number."""
    last = variants[0].study.user_attrs.get("last")
    return last if type(last) is int and last > 0 else LAST_TRIALS


def spread(variant: Variant, last: int) -> str:
    """Mean and error as written in charts and tables."""
    mean, error = mean_and_error(variant.scores(last))
    if len(variant.completed) < 2:  # one score says nothing of its error
        return f"{mean:.3f}" if variant.completed else "–"
    return f"{mean:.3f} ± {error:.3f}"


def parameter_value(value: Any, digits: int = 4) -> str:
    """A hyperparameter's value with so many digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def near_edge(bounds: Range | None, value: Any) -> float | None:
    """The end of its range that a value is within a tenth of, if any."""
    if bounds is None or type(value) not in (int, float):
        return None
    try:
        place = bounds.place(float(value))
    except (ValueError, ZeroDivisionError):
        return None  # a log range that does not begin above 0
    return bounds.low if place < EDGE else bounds.high if place > 1 - EDGE else None


def best_trials(variants: Sequence[Variant]) -> Table | None:
    """The values of each variant's best trial; a column for each variant."""
    found = [(variant, variant.best) for variant in variants if variant.best]
    names = dict.fromkeys(name for _, best in found for name in best.params)
    if not names:
        return None
    rows = [["trial", *(str(best.number) for _, best in found)]]
    rows.append(["score", *(f"{score(best):.3f}" for _, best in found)])
    for name in names:
        row = [name]
        for variant, best in found:
            value = best.params.get(name)
            edge = near_edge(variant.ranges.get(name), value)
            row.append("–" if value is None else parameter_value(value))
            row[-1] += f" (edge {edge:g})" if edge is not None else ""
        rows.append(row)
    caption = (
        "(edge …): the value lies within 10 % of that end of its range, on a log scale where the "
        "search used one; a wider range may hold better ones."
    )
    edges = any("(edge" in cell for row in rows for cell in row)
    head = ["", *(variant.name for variant, _ in found)]
    return Table("Best trial of each variant", caption if edges else "", head, rows)


def trial_seconds(variant: Variant) -> str:
    """Median seconds of a completed trial, and the share that was not training or evaluation."""
    times, overheads = [], []
    for trial in variant.completed:
        seconds, overhead = (trial.user_attrs.get(k) for k in ("seconds", "overhead_seconds"))
        if type(seconds) in (int, float) and seconds > 0:
            times.append(seconds)
            if type(overhead) in (int, float):
                overheads.append(overhead / seconds)
    if not times:
        return "–"
    share = f" ({100 * statistics.median(overheads):.1f} %)" if overheads else ""
    return f"{statistics.median(times):.3g} s{share}"


def variants_table(variants: Sequence[Variant], last: int) -> Table:
    """A row for each variant."""
    head = [
        "variant",
        "completed",
        "pruned",
        "failed",
        "unfinished",
        f"mean of last {last} ± SEM",
    ]
    head += ["best", "relearning only", "time (overhead)"]
    rows = []
    for variant in variants:
        unfinished = variant.count(TrialState.RUNNING) + variant.count(TrialState.WAITING)
        row = [variant.name, str(len(variant.completed)), str(variant.count(TrialState.PRUNED))]
        row += [str(variant.count(TrialState.FAIL)), str(unfinished), spread(variant, last)]
        if 0 < len(variant.completed) < last:
            row[-1] += f" (n = {len(variant.completed)})"
        best = variant.best
        row.append(f"{score(best):.3f}" if best else "–")
        row.append(f"{variant.baseline:.3f}" if math.isfinite(variant.baseline) else "–")
        row.append(trial_seconds(variant))
        rows.append(row)
    caption = (
        "SEM: standard deviation (divisor n) over the square root of n. Pruned: ended early or "
        "rejected by the retain-loss budget; they have no score. Time: median of a completed "
        "trial, with the share that is not its own passes."
    )
    return Table("Variants", caption, head, rows)
