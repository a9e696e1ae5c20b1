#!/usr/bin/env python3
"""Judge unlearning by held-out facts, rotating: `--help` explains the use.

Deeb and Roger's evaluation: the facts to forget come in splits that tell nothing about each other.
All are unlearned; the attacker relearns all but one; what it gets back of the one it never saw had
stayed in the weights. Each split is held out once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from identities import difference, inputs
from text_records import InputError
from token_files import (
    Origin,
    TokenRows,
    file_sha256,
    join_rows,
    read_token_rows,
    replace_file,
    write_token_file,
)
from tool_ends import fault_status, fault_words, run_tool
from yaml_reader import as_argument, read_config

EXIT_FAILED, EXIT_BAD_INPUT, REJECTED = 1, 2, 4
ROW_ORDER_SEED = 42
RESULT = "held-out-facts.json"
ACCURACY = "held_out"
CONTEXT_LENGTH = 100  # the program's default
ROOT = Path(__file__).resolve().parents[1]

DESCRIPTION = """\
Unlearn all splits of a set of facts, relearn all but one, test on that one, and so for each
split in turn: a `mudman-mpi run` a split, into OUTPUT/1, OUTPUT/2, ... Then print a table and
write OUTPUT/held-out-facts.json.

CONFIG is a config of `run`. It gives the model, the texts to keep (data.retain,
data.retain_validation, data.retain_evaluation) and all settings; this tool sets data.forget (all
splits), data.forget_validation (all but the one held out; the attack), data.forget_evaluation
(the one held out), with --questions evaluate.multiple_choice, and output.dir. Rows of joined
splits are in a random order fixed by a seed. Splits are token files of prepare_data.py
--no-split: texts, rows of different lengths (--pad), or prompts with answers.

The score is the lowest loss on the held-out split during the attack: higher is better forgotten.
With --questions also the share of questions on the held-out split answered right at the end.

The same command continues after any end: finished runs are kept.
"""

EPILOG = """\
examples:
  for i in 1 2 3; do
    prepare_data.py facts-$i.jsonl --no-split --prompt-field question --answer-field answer \\
        --tokenizer models/mine --output data/facts-$i
  done
  held_out_facts.py my.yaml --splits data/facts-[1-3].h5 --baseline

  held_out_facts.py configs/held-out-facts/demo.yaml \\
      --splits data/demo/facts-[1-5].h5 --questions data/demo/questions-[1-5].h5 --baseline
  held_out_facts.py my.yaml --splits data/facts-*.h5 --program 'mpirun -n 4 mudman-mpi' \\
      --set unlearn.use_masking=false --output runs/facts/no-masking

exit status: 0 done; 2 bad input or arguments, with one line that says where; 1 anything else
"""


@dataclass(frozen=True)
class Rotation:
    """One split held out: a run with unlearning, or without."""

    held_out: int
    unlearns: bool
    folder: Path

    @property
    def name(self) -> str:
        return f"{'' if self.unlearns else 'relearning only '}{self.held_out + 1}"


def read_rows(paths: Sequence[Path]) -> tuple[list[TokenRows], Origin]:
    """The rows of every split, and what the first says of its tokenizer."""
    rows, first = [], None
    for path in paths:
        try:
            with h5py.File(path, locking="best-effort") as file:
                rows.append(read_token_rows(file))
                about = (int(file.attrs["vocab_size"]), str(file.attrs["tokenizer"]))
        except (OSError, KeyError) as error:
            raise InputError(f"{path}: not a token file: {error}") from None
        first = first or about
        if about != first or rows[-1].tokens.shape[1] != rows[0].tokens.shape[1]:
            raise InputError(f"{path}: another tokenizer or row length than {paths[0]}")
    return rows, Origin(*first, "splits")


def write_joined(path: Path, splits: Sequence[TokenRows], origin: Origin, what: str) -> None:
    """Write the rows of several splits in one random order."""
    rows = join_rows(splits)
    if not len(rows.tokens):
        raise InputError(f"{path}: {what} have no row that is not held out: nothing to attack with")
    order = np.random.default_rng(ROW_ORDER_SEED).permutation(len(rows.tokens))
    write_token_file(path, rows.chosen(order), Origin(origin.vocab_size, origin.tokenizer, what))


class Evaluation:
    """All rotations of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._output = options.output
        self._rows, self._origin = read_rows(options.splits)
        self._stands: dict[str, str] = {}  # the inputs that all runs have in common
        self._context = options.context
        self.rotations = [
            Rotation(split, prefix == "", self._output / f"{prefix}{split + 1}")
            for prefix in (("", "baseline-") if options.baseline else ("",))
            for split in range(len(options.splits))
        ]

    def prepare(self) -> None:
        """Note the settings, or hold them against those of an earlier call; join the splits."""
        options = self._options
        files = [*options.splits, *options.questions]
        settings = {
            "config": hashlib.sha256(options.config.read_bytes()).hexdigest(),
            "set": options.set,
            "files": {str(path): file_sha256(path) for path in files},
        }
        noted = self._output / "settings.json"
        if noted.is_file():
            if what := self._difference(json.loads(noted.read_text(encoding="utf-8")), settings):
                raise InputError(
                    f"{self._output}: holds runs with other settings or data ({what}); give "
                    "another --output"
                )
            return
        write_joined(self._output / "all.h5", self._rows, self._origin, "all splits")
        for held_out, rows in enumerate(self._rows):
            others = self._rows[:held_out] + self._rows[held_out + 1 :]
            others = [self._unlike(rows, other, held_out) for other in others]
            what = f"all splits but {held_out + 1}"
            write_joined(self._without(held_out), others, self._origin, what)
        replace_file(noted, json.dumps(settings, indent=2).encode())

    @staticmethod
    def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
        """What differs from an earlier call; files may have moved since."""
        old, new = list(before["files"].values()), list(now["files"].values())
        for path, had, has in zip(now["files"], old, new):
            if had != has:
                return path
        if len(old) != len(new):
            return "the number of files"
        return next((key for key in ("config", "set") if before[key] != now[key]), None)

    def _unlike(self, held_out: TokenRows, rows: TokenRows, split: int) -> TokenRows:
        """The rows that are not among those held out: an attack never sees what is evaluated."""
        seen = set(held_out.texts(self._context))
        kept = np.array([text not in seen for text in rows.texts(self._context)], bool)
        if not kept.all():
            print(
                f"held_out_facts.py: warning: {np.sum(~kept)} rows of other splits are also in "
                f"{self._options.splits[split]}: its attack leaves them out",
                file=sys.stderr,
            )
        return rows.chosen(kept)

    def _without(self, split: int) -> Path:
        return self._output / f"without-{split + 1}.h5"

    def arguments(self, rotation: Rotation) -> list[str]:
        """What a rotation sets beside the config."""
        split = rotation.held_out
        settings: dict[str, Any] = {
            "data.forget": str(self._output / "all.h5"),
            "data.forget_validation": str(self._without(split)),
            "data.forget_evaluation": str(self._options.splits[split]),
            "output.dir": str(rotation.folder),
            "output.save_model": False,
        }
        if self._options.questions:
            file = str(self._options.questions[split])
            settings["evaluate.multiple_choice"] = [{"name": ACCURACY, "file": file}]
        if not rotation.unlearns:
            settings["unlearn.loops"] = 0
        own = [f"{key}={as_argument(value)}" for key, value in settings.items()]
        return [*self._options.set, *own]

    def run(self, rotation: Rotation) -> dict[str, Any]:
        """The result of a rotation, held against those before it."""
        result = self._result(rotation)
        stands = {k: v for k, v in inputs(result.get("identity")).items() if not varies(k)}
        self._stands = self._stands or stands
        if key := difference(self._stands, stands):
            raise InputError(
                f"{rotation.folder}: stands on another {key} than the runs before it "
                f"({stands.get(key)}, not {self._stands.get(key)}), with which it does not "
                "compare: give another --output"
            )
        return result

    def _result(self, rotation: Rotation) -> dict[str, Any]:
        """The result of a run that is made, continued or there."""
        result = read_result(rotation.folder)
        if result:
            return result
        command = [*self._options.program]
        if (rotation.folder / "config.yaml").is_file():
            command += ["resume", str(rotation.folder)]
        else:
            command += ["run", str(self._options.config), *self.arguments(rotation)]
        try:
            done = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise InputError(f"{command[0]}: {error.strerror}") from None
        result = read_result(rotation.folder)
        if done.returncode not in (0, REJECTED) or not result:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            kind = InputError if done.returncode == EXIT_BAD_INPUT else RuntimeError
            raise kind(f"split {rotation.name}: exit status {done.returncode}: {words}")
        return result


def varies(name: str) -> bool:
    """Whether an input differs from rotation to rotation."""
    return name.startswith(("data.forget", "evaluate."))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result line of a run that ended, with the last accuracy; None where there is none."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        parsed = [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        return None  # stopped within a line
    if not parsed or parsed[-1].get("phase") != "result":
        return None
    key = f"accuracy_{ACCURACY}"
    ends = {
        (line["at"], line.get("attack")): line[key]
        for line in parsed
        if line.get("phase") == "eval" and key in line
    }
    # Of several attacks the one that brings most back; one that diverged has no accuracy.
    figures: dict[str, Any] = {}
    for (at, _), value in ends.items():
        name = f"{key}_{at}"
        figures[name] = max((v for v in (figures.get(name), value) if finite(v)), default=None)
    return parsed[-1] | figures


def finite(value: Any) -> bool:
    """Whether a figure is a number: null stands for what is not finite."""
    return type(value) in (int, float) and math.isfinite(value)


COLUMNS = (
    ("forget loss", "forget_loss_start"),
    ("unlearned", "forget_loss_unlearn"),
    ("relearned", "score"),
    ("retain loss", "retain_loss_start"),
    ("unlearned", "retain_loss_unlearn"),
    ("relearned", "retain_loss_relearn"),
    ("questions", f"accuracy_{ACCURACY}_start"),
    ("unlearned", f"accuracy_{ACCURACY}_unlearn"),
    ("relearned", f"accuracy_{ACCURACY}_relearn"),
)


def number(value: float | None) -> str:
    return f"{value:.3f}" if finite(value) else "-"


def is_above(result: dict[str, Any]) -> bool:
    """Whether the attack only raised the forget loss."""
    score, before = result.get("score"), result.get("forget_loss_unlearn")
    before = result.get("forget_loss_start") if before is None else before
    return score is not None and before is not None and score > before


def table(results: dict[Rotation, dict[str, Any]]) -> list[list[str]]:
    """A line a run; after those with and those without unlearning their mean and its standard
    error (std with ddof 0, as in the study) over the runs that were not rejected; none of a figure
    that one of these does not have."""
    columns = [(head, key) for head, key in COLUMNS if any(key in r for r in results.values())]
    lines = [["held out", *(head for head, _ in columns)]]
    for unlearns in (True, False):
        mine = {r: result for r, result in results.items() if r.unlearns == unlearns}
        lines += [[r.name, *(number(mine[r].get(key)) for _, key in columns)] for r in mine]
        valid = [result for result in mine.values() if result["status"] == "done"]
        if not valid:
            continue
        known = [[r.get(key) for r in valid] for _, key in columns]
        known = [values if all(map(finite, values)) else [] for values in known]
        errors = [statistics.pstdev(k) / math.sqrt(len(k)) if k else None for k in known]
        lines.append(["mean", *(number(statistics.fmean(k) if k else None) for k in known)])
        lines.append(["standard error", *map(number, errors)])
    return lines


def print_table(results: dict[Rotation, dict[str, Any]]) -> None:
    """The table, the names to the left, and why runs were rejected."""
    lines = table(results)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for name, *cells in lines:
        words = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        print("  ".join([name.ljust(widths[0]), *words]))
    for rotation, result in results.items():
        if result["status"] != "done":
            print(f"{rotation.name} was {result['status']}: {result['reason']}")
        elif is_above(result):
            print(f"{rotation.name}: the attack only raised the forget loss")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="held_out_facts.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="of `mudman-mpi run`")
    add("--splits", type=Path, nargs="+", required=True, metavar="FILE", help="token files")
    add(
        "--questions",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="multiple-choice files, one a split in the same order",
    )
    add("--baseline", action="store_true", help="also relearning alone, for each split")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the config for all runs; repeatable",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the runs go (default: the config's output.dir)",
    )
    add(
        "--program",
        type=shlex.split,
        metavar="COMMAND",
        help="what comes before `run` (default: mudman-mpi as built here, else as installed)",
    )
    options = parser.parse_args(arguments)
    if len(options.splits) < 2:
        parser.error("--splits needs two files or more: one is held out")
    if options.questions and len(options.questions) != len(options.splits):
        n, splits = len(options.questions), len(options.splits)
        parser.error(f"--questions: {n} files for {splits} splits")
    if not options.program:
        built = ROOT / "build" / "mudman-mpi"
        options.program = [
            str(built) if built.is_file() else shutil.which("mudman-mpi") or built.name
        ]
    return options


def context_length(config: dict[str, Any], settings: Sequence[str]) -> int:
    """The columns of a row that the program reads."""
    given = (config.get("data") or {}).get("context_length", CONTEXT_LENGTH)
    for key, _, value in (setting.partition("=") for setting in settings):
        given = value if key == "data.context_length" else given
    return (
        int(given) if str(given).isdecimal() else CONTEXT_LENGTH
    )  # the program says what is wrong


def evaluate(options: argparse.Namespace) -> None:
    """Run all rotations; print and write what they gave."""
    content = read_config(options.config)
    if not options.output:
        folder = (content.get("output") or {}).get("dir")
        if not folder:
            raise InputError(f"{options.config}: no output.dir; give --output")
        options.output = Path(folder)
    options.context = context_length(content, options.set)
    evaluation = Evaluation(options)
    evaluation.prepare()
    results = {}
    for rotation in evaluation.rotations:
        results[rotation] = evaluation.run(rotation)
        score = results[rotation].get("score")
        words = results[rotation]["status"] if score is None else f"score {score:.4f}"
        print(f"held out {rotation.name}: {words}", file=sys.stderr, flush=True)
    rows = [
        {"held_out": r.held_out + 1, "unlearned": r.unlearns, **result}
        for r, result in results.items()
    ]
    replace_file(options.output / RESULT, (json.dumps(rows, indent=2) + "\n").encode())
    print_table(results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        evaluate(options)
    except InputError as error:
        return _end(EXIT_BAD_INPUT, str(error))
    except RuntimeError as error:
        return _end(EXIT_FAILED, str(error))
    except OSError as error:
        return _end(fault_status(error), fault_words(error))
    return 0


def _end(status: int, message: str) -> int:
    # A message may quote the input; it stays one line all the same.
    print(f"held_out_facts.py: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run_tool("held_out_facts.py", main))
