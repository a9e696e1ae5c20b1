#!/usr/bin/env python3
"""Write the demo's potions in splits of facts, for held_out_facts.py.

The same seed gives the same bytes. The files, facts-1.h5 and questions-1.h5 to facts-N.h5 and
questions-N.h5, belong to those of demo_data.py of the same seed. Potion i is in split i modulo N.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demo_data import POTIONS, Fact, Generator, World, forget_rows, questions_on
from token_files import Origin, file_sha256, write_multiple_choice_file, write_token_file

ROWS = 1024


def split_facts(world: World, splits: int) -> list[list[Fact]]:
    """The facts of each split; every potion's facts stay together."""
    names = list(dict.fromkeys(fact.name for fact in world.potions))
    return [
        [fact for fact in world.potions if names.index(fact.name) % splits == split]
        for split in range(splits)
    ]


def write_splits(folder: Path, seed: int, splits: int, rows: int) -> list[Path]:
    """Write the files; returns their paths."""
    paths = []
    for number, facts in enumerate(split_facts(World(seed), splits), start=1):
        origin = Origin(256, "bytes", f"demo corpus, seed {seed}: split {number} of {splits}")
        paths += [folder / f"facts-{number}.h5", folder / f"questions-{number}.h5"]
        tokens = forget_rows(facts, Generator(seed, f"split-{number}-of-{splits}"), rows)
        write_token_file(paths[-2], tokens, origin)
        questions = questions_on(facts, Generator(seed, f"questions-{number}-of-{splits}"))
        write_multiple_choice_file(paths[-1], questions, origin)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo_fact_splits.py", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="OUT_DIR", help="where the files go; made if missing")
    add("--seed", type=int, default=1, help="as of demo_data.py (default 1)")
    add("--splits", type=int, default=5, metavar="N", help=f"2 to {POTIONS} (default 5)")
    add("--rows", type=int, default=ROWS, help=f"of each split, 96 bytes long (default {ROWS})")
    options = parser.parse_args(arguments)
    if not 2 <= options.splits <= POTIONS:
        parser.error(f"--splits must be from 2 to {POTIONS}")
    if options.rows < 1:
        parser.error("--rows must be at least 1")
    try:
        paths = write_splits(options.folder, options.seed, options.splits, options.rows)
    except OSError as error:
        print(f"demo_fact_splits.py: {options.folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    for path in paths:
        print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
