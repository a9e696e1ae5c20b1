#!/usr/bin/env python3
"""Times trials in the resident server against one process a trial, with the same settings, in turns.

    bench_trials.py [SEARCH.yaml] [--trials 100] [--variant NAME] [--binary build/mudman-mpi] [--seed 0]

Settings are drawn from the ranges of a search file (default: configs/demo-search.yaml). A trial and its run
must end with the same score. Prints the seconds of both, and the server's overhead: what it spends outside loops, steps and
evaluations.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from search_config import Range, Variant, read_search  # noqa: E402  needs the path above
from search_server import TrialServer  # noqa: E402

ENDS = (0, 4)  # done; rejected


def draw(range_: Range, numbers: random.Random) -> float | int:
    low, high = range_.low, range_.high
    if range_.log:
        return math.exp(numbers.uniform(math.log(low), math.log(high)))
    return numbers.randint(int(low), int(high)) if range_.integer else numbers.uniform(low, high)


def run_alone(binary: Path, config: str, arguments: list[str]) -> tuple[float, float | None]:
    """Seconds and score of `mudman-mpi run`."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["output.save_model=false", f"output.dir={folder}/run"]
        started = time.monotonic()
        ended = subprocess.run([binary, "run", config, *arguments, *quiet], stderr=subprocess.PIPE)
        seconds = time.monotonic() - started
        assert ended.returncode in ENDS, ended.stderr.decode()
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        return seconds, json.loads(lines[-1])["score"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("search", nargs="?", type=Path, default=ROOT / "configs/demo-search.yaml")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--variant")
    parser.add_argument("--binary", type=Path, default=ROOT / "build/mudman-mpi")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    search = read_search(options.search, None, [options.variant] if options.variant else None)
    variant: Variant = search.variants[0]
    numbers = random.Random(options.seed)
    settings = [
        dict(variant.overrides) | {n: draw(r, numbers) for n, r in variant.parameters.items()}
        for _ in range(options.trials)
    ]
    always = [f"{key}={json.dumps(value)}" for key, value in search.overrides.items()]

    started = time.monotonic()
    server = TrialServer([str(options.binary), "trials", str(search.config), *always], lambda: None)
    server.wait_ready()
    served, alone, overhead = time.monotonic() - started, 0.0, 0.0
    done = 0
    for i, overrides in enumerate(settings):
        started = time.monotonic()
        result = server.run_trial({"id": i, "overrides": overrides}, lambda _: False)
        served += time.monotonic() - started
        overhead += result["overhead_seconds"]
        arguments = always + [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        seconds, score = run_alone(options.binary, str(search.config), arguments)
        alone += seconds
        assert result["score"] == score, (overrides, result, score)
        done += result["status"] == "done"
    server.close()
    print(
        f"{options.trials} trials ({done} done, the rest rejected): {served:.1f} s in one server, "
        f"{alone:.1f} s in a process each: {alone / served:.2f} times; the server's overhead is "
        f"{100 * overhead / served:.2f} % of its time"
    )


if __name__ == "__main__":
    main()
