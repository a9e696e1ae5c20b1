#!/usr/bin/env python3
"""Breaks the CUDA kernels' PTX in one place at a time: the operation tests on the interpreter must fail.

    python3 tests/ptx/mutate.py build [--only KIND]

By hand, after a build with nvcc; without a GPU. Of every kernel the last place of each kind is broken (the
first barrier of a sum over a block parts it from the sum before, if there is one). Kinds: barrier, warp-barrier, wait (of asynchronous copies), fragment (two registers of
a matrix change places), row (an index of a matrix's row in shared memory is one off), and bound, which is
changed in the source and compiled anew. Exits with 1 if something is not noticed, but for what
UNNOTICED explains.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
TEXT = "tests/ptx/CMakeFiles/mm_ptx_text.dir/__/__/kernels/cuda"
PROGRAMS = {
    "attention": ["attention"],
    "bias": [""],
    "device": ["", "half"],
    "layer": ["layer", ""],
    "loss": ["loss", "sequence"],
    "mask": ["vector", "half", "ablations", "rounding"],
    "norm": ["layer"],
    "state": ["state"],
    "vector": ["vector", "half", "", "ablations", "rounding"],
}
# What a removal cannot show, by kind and source: a reason.
UNNOTICED: dict[tuple[str, str], str] = {}


def removed(line: str) -> str:
    return "\n"


def swapped(line: str) -> str:
    """The first two registers of a change places."""
    return re.sub(r"(\}, \{)(%r\d+), (%r\d+),", r"\1\3, \2,", line)


def one_row_off(line: str) -> str:
    return re.sub(r"\[(%r\d+)(?:\+(\d+))?\];", lambda m: f"[{m[1]}+{int(m[2] or 0) + 16}];", line)


KINDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "barrier": (r"^\s*bar\.sync", removed),
    "warp-barrier": (r"^\s*bar\.warp\.sync", removed),
    "wait": (r"^\s*cp\.async\.wait_all", removed),
    "fragment": (r"^\s*mma\.sync", swapped),
    "row": (r"^\s*ldmatrix", one_row_off),
}
# Bounds one off: file, the text, what it becomes, and the file that is compiled.
BOUNDS = [
    ("layer.cu", "if (first >= x.cols)", "if (first > x.cols)", "layer"),
    ("layer.cu", "if (at < n)", "if (at <= n)", "layer"),
    ("bias.cu", "first + i < dy.rows && column", "first + i <= dy.rows && column", "bias"),
    ("bias.cu", "if (line > 0 || column >= dy.cols)", "if (line > 0 || column > dy.cols)", "bias"),
    ("loss.cu", "if (!WIDE || at < r.V)", "if (!WIDE || at <= r.V)", "loss"),
    ("loss.cu", "if (at >= r.V)", "if (at > r.V)", "loss"),
    ("block.h", "first + k >= low && first + k < high ?", "first + k >= low && first + k <= high ?", "state"),
    ("block.h", "if (first + k >= low && first + k < high)", "if (first + k >= low && first + k <= high)", "norm"),
    ("tile.h", "bool inside = r < valid && c < d;", "bool inside = r <= valid && c < d;", "attention"),
    ("tile.h", "if (r < valid && col < d)", "if (r <= valid && col < d)", "attention"),
    ("attention.cu", "if (key + STEP < end)", "if (key + STEP <= end)", "attention"),
]


def places(kind: str, text: list[str]) -> dict[str, int]:
    """By kernel the line that is broken."""
    pattern, kernel, found = re.compile(KINDS[kind][0]), "", {}
    for number, line in enumerate(text):
        if entry := re.search(r"\.entry (\w+)\(", line):
            kernel = entry[1]
        if pattern.search(line):
            found[kernel] = number
    return found


def noticed(build: Path, folder: Path, subject: str) -> str:
    """What the first test that fails says; "" if none does."""
    for name in PROGRAMS[subject]:
        program = build / "tests" / f"test_ops{'_' if name else ''}{name}_ptx"
        done = subprocess.run([program], env={**os.environ, "MM_PTX": str(folder)}, capture_output=True, text=True)
        if done.returncode != 0:
            said = re.findall(r"(?m)^(?:ptx|ERROR): (.*)", done.stderr + done.stdout)
            return said[-1] if said else f"exit {done.returncode}"
    return ""


def compiled(source: Path, subject: str) -> str:
    made = subprocess.run(
        ["nvcc", "-ptx", "-arch=sm_90", "-std=c++17", f"-I{source}", source / f"kernels/cuda/{subject}.cu", "-o", "-"],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        sys.exit(made.stderr)
    return made.stdout


class Mutants:
    """A folder with the PTX, of which one file at a time is another."""

    def __init__(self, build: Path, folder: Path) -> None:
        self.build, self.folder, self.unnoticed, self.n = build, folder, 0, 0
        for path in (build / TEXT).glob("*.ptx"):
            (folder / path.name).symlink_to(path)

    def run(self, kind: str, subject: str, where: str, text: str) -> None:
        path = self.folder / f"{subject}.ptx"
        original = path.readlink()
        path.unlink()
        path.write_text(text)
        said = noticed(self.build, self.folder, subject)
        path.unlink()
        path.symlink_to(original)
        excuse = "" if said else UNNOTICED.get((kind, subject), "")
        print(f"{kind}: {where}: {said[:110] or excuse or 'NOT NOTICED'}", flush=True)
        self.n += 1
        self.unnoticed += not said and not excuse


def break_bounds(mutants: Mutants, folder: Path) -> None:
    source = folder / "source"
    subprocess.run(["cp", "-r", "--parents", "kernels", "src/base", source], cwd=ROOT, check=True)
    for name, old, new, subject in BOUNDS:
        path = source / "kernels" / "cuda" / name
        text = path.read_text()
        if text.count(old) == 0:
            sys.exit(f"{name} has no '{old}'")
        path.write_text(text.replace(old, new))
        mutants.run("bound", subject, f"{name}: {new}", compiled(source, subject))
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--only", choices=[*KINDS, "bound"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ptx = folder / "ptx"
        ptx.mkdir()
        mutants = Mutants(options.build.resolve(), ptx)
        for kind in KINDS if options.only is None else [options.only]:
            for path in sorted(ptx.glob("*.ptx")) if kind in KINDS else []:
                text = path.read_text().splitlines(keepends=True)
                for kernel, number in places(kind, text).items():
                    broken = text[:number] + [KINDS[kind][1](text[number])] + text[number + 1 :]
                    mutants.run(kind, path.stem, f"{path.name}:{number + 1} {kernel}", "".join(broken))
        if options.only in (None, "bound"):
            (folder / "source").mkdir()
            break_bounds(mutants, folder)
    print(f"{mutants.n} broken, {mutants.unnoticed} not noticed")
    return 1 if mutants.unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
