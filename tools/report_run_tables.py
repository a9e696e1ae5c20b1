"""The tables of run folders in a report: results, harm, and the settings that differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from report_charts import finite
from report_page import Table
from report_runs import Point, Run, number
from report_seeds import Series, as_series, mean_and_error

DASH = "–"
SEEDS = (
    " Of several seeds: mean ± standard error over the seeds (standard deviation with divisor "
    "n - 1 over the square root of n)."
)
ABOVE = "*"
Errors = Callable[[Sequence[float]], tuple[float, float]]  # mean and standard error
Measure = tuple[str, Callable[[Point], float], int]  # what it is, of an evaluation, its digits


def shown(value: float, digits: int = 3) -> str:
    """A number in a table, or a dash."""
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def spread(
    values: Sequence[float], digits: int = 3, sign: str = "", errors: Errors = mean_and_error
) -> str:
    """Mean and standard error of those values that there are, and how many where some lack; a value
    that all share stands alone."""
    there = finite(values)
    if not there:
        return DASH
    mean, error = errors(there)
    text = f"{mean:{sign}.{digits}f}"
    text += f" ± {error:.{digits}f}" if min(there) < max(there) else ""
    return text + (f" (n = {len(there)})" if len(there) < len(values) else "")


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


def joint_status(runs: Sequence[Run]) -> str:
    """How the runs ended: one's own words, or how many ended how."""
    if len(runs) == 1:
        return status(runs[0])
    ends = [str(run.result.get("status", "no result yet")) for run in runs]
    return ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))


def worst_attack(run: Run) -> str | None:
    """Of several attacks the one that brings most back: it ends with the lowest forget loss and did
    not diverge. None where there is none."""
    ends = {
        name: points[-1].forget
        for name, points in run.attacks.items()
        if len(points) > 1 and run.result.get(f"diverged_{name}") is None
    }
    ends = {name: loss for name, loss in ends.items() if math.isfinite(loss)}
    return min(ends, key=ends.__getitem__, default=None)


def stages(run: Run) -> list[Point | None]:
    """The evaluations at the start, after unlearning and after relearning, where there are any; of
    several attacks after the worst."""
    start = run.unlearning[0] if run.unlearning else None
    unlearned = run.unlearning[-1] if len(run.unlearning) > 1 else None
    worst = worst_attack(run)
    return [start, unlearned, None if worst is None else run.attacks[worst][-1]]


def at_stages(runs: Sequence[Run], of: Callable[[Point], float]) -> list[list[float]]:
    """A figure of every run at the start, after unlearning and after relearning."""
    return [
        [math.nan if point is None else of(point) for point in points]
        for points in zip(*map(stages, runs))
    ]


def score_words(runs: Sequence[Run]) -> str:
    """The score; that of attacks that only raised the forget loss has a mark."""
    scores = [number(run.result, "score") for run in runs]
    before = [run.unlearning[-1].forget if run.unlearning else math.nan for run in runs]
    above = any(score > loss for score, loss in zip(scores, before))
    return f"{spread(scores)} {ABOVE}" if above else spread(scores)


def result_row(series: Series, several_attacks: bool) -> list[str]:
    """A row of the results."""
    runs = series.runs
    row = [series.label, joint_status(runs), score_words(runs)]
    row += [spread(values) for values in at_stages(runs, lambda p: p.forget)]
    if several_attacks:
        names = dict.fromkeys(name for run in runs if (name := worst_attack(run)) is not None)
        row.append(", ".join(names) or DASH)
    peak = max(finite([number(run.result, "peak_bytes") for run in runs]), default=math.nan)
    row.append(f"{peak / 2**20:.0f} MiB" if math.isfinite(peak) else DASH)
    seconds = finite([number(run.result, "seconds") for run in runs])
    return [*row, f"{statistics.fmean(seconds):.1f} s" if seconds else DASH]


def results(all_series: Sequence[Series]) -> list[Table]:
    """Score, forget loss at three times, and what the run took; each run by itself in a second
    table where some are shown together."""
    several_attacks = any(len(run.attacks) > 1 for s in all_series for run in s.runs)
    several_seeds = any(len(series.runs) > 1 for series in all_series)
    head = ["run", "status", "score", "forget loss: start", "unlearned", "relearned"]
    head += ["worst attack"] * several_attacks + ["memory of a rank", "time"]
    caption = (
        "Forget loss in nats a token on the evaluation batches; higher is better forgotten. Score: "
        "by default the lowest forget loss at any evaluation of relearning. Relearned: at the end "
        "of relearning"
    )
    if several_attacks:
        caption += ", by the worst attack: the one that ends with the lowest forget loss"
    text = frozenset({1, 6}) if several_attacks else frozenset({1})
    rows = [result_row(series, several_attacks) for series in all_series]
    above = any(row[2].endswith(ABOVE) for row in rows)
    caption += f". {ABOVE}: above the loss before the attack, which says little" if above else ""
    tables = [Table("Results", f"{caption}.{SEEDS * several_seeds}", head, rows, text)]
    if several_seeds:
        runs = [as_series(run.name, [run]) for series in all_series for run in series.runs]
        rows = [result_row(series, several_attacks) for series in runs]
        tables.append(Table("Every run", "", head, rows, text, folded=True))
    return tables


def measures(all_series: Sequence[Series]) -> list[Measure]:
    """What harm is measured by."""
    found: list[Measure] = [
        ("retain loss (nats)", lambda p: p.retain, 3),
        ("divergence (KL, nats)", lambda p: p.kl, 4),
    ]
    for name in dict.fromkeys(name for series in all_series for name in series.questions()):
        found.append(
            (f"accuracy on {name}", lambda p, name=name: p.accuracy.get(name, math.nan), 3)
        )
    return found


HARM_HEAD = ("", "measure", "start", "unlearned", "change", "relearned", "change")


def harm_table(rows: Sequence[Sequence[str]], what: str) -> Table | None:
    """The table of rows as in HARM_HEAD, whose caption says what its measures are, and `what` its
    values are; none of no rows."""
    measured = " ".join(row[1] for row in rows)
    caption = "Changes are from the start. Retain loss in nats a token."
    if "divergence" in measured:
        caption += " Divergence: of the next-token distributions from those at the start."
    if "accuracy" in measured:
        caption += (
            " Accuracy: the share answered right, or at temperature 1 the mean probability of the "
            "right answer; on questions about what is to be forgotten a fall is the aim, on others "
            "it is harm."
        )
    return Table("Harm", caption + what, HARM_HEAD, rows, frozenset({1})) if rows else None


def harm_cells(
    values: Sequence[Sequence[float]], digits: int, errors: Errors = mean_and_error
) -> list[str]:
    """The five cells of a measure, from its values at the three times."""
    start, *later = values
    cells = [spread(start, digits, errors=errors)]
    for column in later:
        changes = [now - before for now, before in zip(column, start)]
        cells += [spread(column, digits, errors=errors), spread(changes, digits, "+", errors)]
    return cells


def harm(all_series: Sequence[Series]) -> Table | None:
    """Retain loss, divergence and accuracies at three times, and their changes."""
    rows = []
    for series in all_series:
        for name, of, digits in measures(all_series):
            cells = harm_cells(at_stages(series.runs, of), digits)
            if set(cells) != {DASH}:
                rows.append([series.label, name, *cells])
    return harm_table(rows, SEEDS * any(len(series.runs) > 1 for series in all_series))


def setting_words(text: str) -> str:
    """A setting as a config has it: lists without the quotes of JSON."""
    return DASH if text == "null" else text.replace('"', "") if text.startswith("[") else text


def differences(all_series: Sequence[Series]) -> Table | None:
    """The settings that differ between the runs; none of one run or of equal ones."""
    known = [series for series in all_series if any(run.config for run in series.runs)]
    runs = [run for series in known for run in series.runs if run.config]
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [[run.config.get(key, DASH) for run in s.runs if run.config] for s in known]
        if key != "output.dir" and len({value for of in values for value in of}) > 1:
            rows.append([key, *(", ".join(dict.fromkeys(map(setting_words, of))) for of in values)])
    if not rows:
        return None
    head = ["key", *(series.label for series in known)]
    columns = frozenset(range(1, len(head)))
    return Table("Settings that differ", "From each run's config.yaml.", head, rows, columns)
