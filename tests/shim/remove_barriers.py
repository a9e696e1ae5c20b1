#!/usr/bin/env python3
"""Removes the barriers of the CUDA kernels one at a time: the tests on the host shim must fail.

    python3 tests/shim/remove_barriers.py [--jobs 2]

In a copy of the sources, by hand: some minutes each. Without a GPU. Exits with 1 if a removal is not
noticed, but for lines that say "no test shows it".
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BARRIER = re.compile(r"^\s*__sync(threads|warp)\(\);")
TESTS = "^shim_ops|^shim_golden_random$"


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def failing(build: Path, jobs: int) -> list[str]:
    """The tests that fail in a fresh build of the copy; the first of them ends the others."""
    made = run("cmake", "--build", build, "-j", jobs)
    if made.returncode != 0:
        sys.exit(made.stdout + made.stderr)
    tests = run("ctest", "--test-dir", build, "-R", TESTS, "-j", jobs, "--stop-on-failure")
    return re.findall(r"(?m)^\s*\d+ - (\S+) \(", tests.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy, build = Path(folder, "copy"), Path(folder, "build")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("build*", ".*", "runs", "data"))
        made = run("cmake", "-S", copy, "-B", build, "-DMUDMAN_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release")
        if made.returncode != 0 or (failed := failing(build, jobs)):
            sys.exit(made.stderr or f"these fail as it is: {failed}")
        for path in sorted((copy / "kernels" / "cuda").iterdir()):
            text = path.read_text()
            lines = text.splitlines(keepends=True)
            for number, line in enumerate(lines):
                if not BARRIER.match(line):
                    continue
                path.write_text("".join(lines[:number] + ["\n"] + lines[number + 1 :]))
                failed = failing(build, jobs)
                print(f"{path.name}:{number + 1}: {', '.join(failed) or 'NOT NOTICED'}", flush=True)
                unnoticed += not failed and "no test shows it" not in line
            path.write_text(text)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
