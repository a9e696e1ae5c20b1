"""From the start of the program to its first loop: for a tiny model, and one in SmolLM-135M's shape.

    .venv/bin/python tests/bench/bench_start.py [--repeats 5] [--binary build/mudman-mpi]

Seconds from the call of the program (or of mpirun) to the line of the first loop in metrics.jsonl,
less the time of a loop; the initial evaluation is included. Random weights; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "tiny": {"width": 64, "mlp": 192, "layers": 3, "vocab": 256},
    "SmolLM-135M": {"width": 576, "mlp": 1536, "layers": 30, "vocab": 49152, "heads": 9},
}


def start(config: Path, run: Path, ranks: int) -> tuple[float, float]:
    """Seconds to the first loop, and of a loop."""
    loops: list[float] = []

    def looked() -> bool:
        path = run / "metrics.jsonl"
        found = path.read_text().count('"loop":') if path.is_file() else 0
        while len(loops) < found:
            loops.append(time.monotonic() - job.started)
        return found >= 3

    job = Job("run", config, f"output.dir={run}", "relearn.passes=0", ranks=ranks)
    job.wait_until(looked, 300)
    job.kill()
    return loops[0], (loops[-1] - loops[0]) / (len(loops) - 1)


def main() -> None:
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = random_llama(Path(folder) / "model", **shape)
            config = random_case(
                Path(folder), model, batch=4, context=16, unlearn__loops=1000,
                unlearn__target_modules=["gate_proj"],
            )  # fmt: skip
            for ranks in (1, 2):
                times = [
                    start(config, Path(folder) / f"{ranks}-{i}", ranks)
                    for i in range(options.repeats)
                ]
                seconds = statistics.median(first - loop for first, loop in times)
                loop = statistics.median(loop for _, loop in times)
                print(f"{name}, {ranks} ranks: first loop after {seconds:.2f} s, a loop {loop:.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--binary", help="default: MUDMAN_BINARY, or build/mudman-mpi")
    options = parser.parse_args()
    if options.binary:
        os.environ["MUDMAN_BINARY"] = options.binary
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    from job_helpers import Job
    from model_helpers import random_case, random_llama

    main()
