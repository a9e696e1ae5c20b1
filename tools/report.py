#!/usr/bin/env python3
"""Report run folders and hyperparameter searches as one HTML page; `--help` explains the use."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from report_charts import Chart
from report_page import Section, page_html
from report_run_charts import attack_curves, loop_curves, loss_curves, scores, trajectory
from report_run_tables import differences, harm, results
from report_runs import read_runs
from report_seeds import group_by_seed, one_sample
from report_studies import (
    STORAGE_HELP,
    Variant,
    best_trials,
    last_trials,
    measure,
    read_storage,
    refuse_mixture,
    variants_table,
    wanted,
)
from report_study_charts import bars, history, importances, slices
from report_trials import trials_table, variants_harm
from text_records import InputError
from token_files import replace_file
from tool_ends import fault_status, fault_words, run_tool

EXIT_BAD_INPUT = 2

DESCRIPTION = """\
Write one HTML page about runs and searches, and its charts as PNG files beside it. The page holds
its images, fetches nothing, and can be sent and printed as it is.

Runs are shown together: results, scores, harm, forget against retain loss, attack curves, losses
over passes, mask and norms of every loop, and the settings that differ. Runs that differ by their
seed alone are one line, their mean with its standard error. A run in progress can be reported.

Searches are shown by name, the variants of one search together: bars of the mean of the last
completed trials with its standard error and the relearning-only baseline, harm, the best trial of
every variant, the history, the importance of each hyperparameter, the score against each, and
every trial in tables that unfold.
"""

EPILOG = f"""\
{STORAGE_HELP}
examples:
  report.py runs/demo/mudman runs/demo/no-masking
  report.py runs/seed-*/mudman runs/seed-*/no-masking
  report.py runs/search/demo.db --out runs/search/report
  report.py journal:/shared/demo.journal
  report.py sqlite:///studies.db --study pythia-python --last 20
"""


def runs_section(folders: Sequence[Path]) -> Section:
    """Everything about the runs."""
    runs = read_runs(folders)
    section = Section("Runs", notes=[note for run in runs for note in run.notes])
    drawn = [
        run for run in runs if run.unlearning or run.attacks or run.phase("unlearn") or run.result
    ]
    if not drawn:
        return section
    series = group_by_seed(drawn)
    section.notes += [remark for one in series if (remark := one_sample(one))]
    first, *every_run = results(series)
    section.parts.append(first)
    makers = (scores, harm, trajectory, attack_curves, loss_curves, loop_curves, differences)
    section.parts += [part for make in makers if (part := make(series))]
    section.parts += every_run
    return section


def search_section(variants: list[Variant], order: Sequence[str], last: int | None) -> Section:
    """Everything about one search."""
    last = last or last_trials(variants)
    section = Section(f"Search {variants[0].search}")
    if len({variant.maximize for variant in variants}) > 1:
        section.notes.append(
            "some variants are maximized and others minimized: do not compare them"
        )
    if len({v.baseline for v in variants if math.isfinite(v.baseline)}) > 1:
        section.notes.append(
            "the variants have different relearning-only scores: were they run alike?"
        )
    label = measure(variants)
    chart = bars(variants, order, last, label)
    section.parts += [chart] if chart else []
    section.parts.append(variants_table(variants, last))
    tables = [variants_harm(variants, last), best_trials(variants)]
    section.parts += [table for table in tables if table]
    made = [history(variants, order, last, label), importances(variants, order, section.notes)]
    made += [slices(variant, label) for variant in variants]
    section.parts += [chart for chart in made if chart]
    section.parts += [table for variant in variants if (table := trials_table(variant))]
    return section


def studies_sections(
    sources: Sequence[str], names: Sequence[str], last: int | None
) -> list[Section]:
    """A section for each search in the storages; a variant's colour is the same in all of them."""
    variants, notes = [], []
    for source in dict.fromkeys(sources):
        read, remarks = read_storage(source)
        variants += read
        notes += remarks
    variants = wanted(variants, names)
    refuse_mixture(variants)
    # The full method first, then the ablations as the storage has them.
    variants.sort(key=lambda variant: variant.name != "mudman")
    order = list(dict.fromkeys(variant.name for variant in variants))
    searches = list(dict.fromkeys(variant.search for variant in variants))
    sections = [
        search_section([v for v in variants if v.search == s], order, last) for s in searches
    ]
    if notes:
        sections[:0] = [Section("Studies left out", notes=notes)]
    return sections


def write_report(sections: Sequence[Section], out: Path, title: str, footer: str) -> list[Path]:
    """Write the page and its pictures; returns the paths, the page first."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "report.html"]
    for section in sections:
        for part in section.parts:
            if isinstance(part, Chart):
                paths.append(out / f"{part.name}.png")
                replace_file(paths[-1], part.png)
    replace_file(paths[0], page_html(title, sections, footer).encode("utf-8"))
    return paths


def is_run(source: str) -> bool:
    """Tell a run folder from a storage of studies."""
    return Path(source).is_dir()


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number above 0")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources", nargs="+", metavar="RUN|STUDIES", help="run folders and storages of studies"
    )
    parser.add_argument(
        "--study",
        action="append",
        default=[],
        metavar="NAME",
        help="only this study, or all variants of the search of this name; may be repeated",
    )
    parser.add_argument(
        "--last",
        type=positive,
        metavar="N",
        help="completed trials that a mean is taken of, the newest (default: the search's, or 30)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="where the files go, made if missing; replaces files of these names (default report)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    runs = [Path(source) for source in options.sources if is_run(source)]
    storages = [source for source in options.sources if not is_run(source)]
    try:
        if options.study and not storages:
            raise InputError("--study: names a study, but no storage of studies is given")
        sections = [runs_section(runs)] if runs else []
        sections += studies_sections(storages, options.study, options.last) if storages else []
        title = "Unlearning report: " + ", ".join(section.title for section in sections)
        made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        footer = f"Made {made} by tools/report.py from {', '.join(options.sources)}."
        paths = write_report(sections, options.out, title, footer)
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        error.filename = error.filename or str(options.out)
        print(f"report.py: {fault_words(error)}", file=sys.stderr)
        return fault_status(error)
    for section in sections:
        for note in section.notes:
            print(f"report.py: {note}", file=sys.stderr)
    print(f"{paths[0]} and {len(paths) - 1} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool("report.py", main))
