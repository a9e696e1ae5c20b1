"""check_includes.sh finds what breaks the rule, and the repository does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from job_helpers import ROOT

SOURCES = {
    "src/config/config.c": '#include "src/config/config.h"\n#include "io/files.h"\n',
    "src/base/base.h": "#include <stddef.h>\n",
    "io/files.c": '#include "io/files.h"\n#include "src/base/base.h"\n#include <hdf5.h>\n',
    "comm/comm.c": '#include "kernels/tensor.h"\n#include <mpi.h>\n',
    "kernels/tensor.h": '#include "src/base/base.h"\n',
    "tests/unit/test_config.c": '#include "src/config/config.h"\n#include <hdf5.h>\n',
}


def check(root: Path) -> tuple[int, str]:
    found = subprocess.run(
        ["sh", str(ROOT / "tests" / "check_includes.sh"), str(root)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.stderr == ""
    return found.returncode, found.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository that keeps the rule."""
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert check(tmp_path) == (0, "")
    return tmp_path


def test_repository_keeps_the_rule() -> None:
    assert check(ROOT) == (0, "")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("io/new.c", '#include "src/config/config.h"'),
        ("comm/new.h", '#include "io/h5.h"'),
        ("kernels/new.c", '#include "comm/comm.h"'),
        ("kernels/cpu/new.c", '  #  include "io/files.h"'),
        ("src/base/new.h", '#include "kernels/tensor.h"'),
        ("src/base/new.c", '#include "src/config/config.h"'),
        ("kernels/new.c", "#include <src/config/config.h>"),
        ("src/new.c", "#include <mpi.h>"),
        ("io/new.c", "#include <mpi.h>"),
        ("src/new.c", "#include <hdf5.h>"),
        ("comm/new.c", "#include <H5public.h>"),
        ("src/config/config.c", "#include <yaml.h>"),
        ("io/new.c", "#include <cuda_runtime.h>"),
        ("kernels/cpu/new.c", "#include <cublasLt.h>"),
        ("comm/comm.c", "#include <cuda.h>"),
        ("kernels/cuda/new.cu", "#include <nccl.h>"),
        ("src/new.c", "#include <cblas.h>"),
        ("kernels/new.c", "#include <openblas/cblas.h>"),
        ("src/new.c", '#include "tests/golden/trace.h"'),
        ("io/new.c", '#include "../src/config/config.h"'),
        ("io/new.c", '#include "h5.h"'),
        ("src/config/new.c", '#include "src/model/model.h"'),
        ("src/model/new.c", '#include "src/config/config.h"'),
        ("src/model/new.c", '#include "src/parallel/shard.h"'),
        ("src/parallel/new.c", '#include "src/method/lora.h"'),
        ("src/parallel/new.c", '#include "src/mudman.h"'),
        ("src/method/new.c", '#include "src/run/job.h"'),
        ("src/mudman.c", '#include "src/run/stop.h"'),
    ],
)
def test_violation_is_found(tree: Path, file: str, line: str) -> None:
    path = tree / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as sources:
        sources.write(f"{line}\n")
    status, text = check(tree)
    assert status == 1
    assert text.startswith(f"{file}:") and line in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("src/new.c", '#include "io/weights.h"'),
        ("io/new.c", '#include "comm/comm.h"'),
        ("comm/nccl.c", "#include <cuda_runtime.h>"),
        ("comm/nccl.c", "#include <nccl.h>"),
        ("kernels/cuda/new.cu", "#include <cublasLt.h>"),
        ("kernels/cpu/new.c", "#include <cblas.h>"),
        ("tests/new.c", "#include <hdf5.h>"),
        ("tests/new.c", '#include "src/config/config.h"'),
        ("src/new.c", '#include "src/config/yaml.h"'),
        ("src/parallel/new.c", '#include "src/model/model.h"'),
        ("src/parallel/new.c", '#include "src/config/config.h"'),
        ("src/method/new.c", '#include "src/parallel/shard.h"'),
        ("src/method/new.c", '#include "src/mudman.h"'),
        ("src/mudman.c", '#include "src/method/lora.h"'),
        ("src/run/new.c", '#include "src/mudman.h"'),
        ("src/main.c", '#include "src/run/job.h"'),
    ],
)
def test_good_include_is_not(tree: Path, file: str, line: str) -> None:
    path = tree / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    assert check(tree) == (0, "")


@pytest.mark.parametrize(
    "file", ["src/new.c", "kernels/cuda/new.cu", "tests/new.c", "tests/new.py"]
)
def test_long_source_is_found(tree: Path, file: str) -> None:
    path = tree / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n" * 500)
    assert check(tree) == (0, "")
    path.write_text("\n" * 501)
    status, text = check(tree)
    assert status == 1 and f"{file}: over 500 lines" in text


GUARDED = "/* {0} */\n#ifndef {1}\n#define {1}\n#ifndef NAN\n#endif\n#endif\n"


def test_same_guard_is_found(tree: Path) -> None:
    for name, guard in (("comm/job.h", "MM_JOB_H"), ("src/job.h", "MM_OTHER_H")):
        (tree / name).write_text(GUARDED.format("a header", guard))
    assert check(tree) == (0, "")
    (tree / "src/job.h").write_text(GUARDED.format("a header", "MM_JOB_H"))
    status, text = check(tree)
    assert status == 1 and "the guard MM_JOB_H is that of" in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("comment", "cited"),
    [
        ("/* see io/nowhere.h */", "io/nowhere.h"),
        (" * as nowhere.c does it.", "nowhere.c"),
        ("int i; /* (src/config/other.h) */", "src/config/other.h"),
        ("int i; // kernels/cuda/new.cu: why", "kernels/cuda/new.cu"),
    ],
)
def test_citation_of_nothing_is_found(tree: Path, comment: str, cited: str) -> None:
    (tree / "io" / "new.c").write_text(f"{comment}\n")
    status, text = check(tree)
    assert (status, text) == (1, f"io/new.c:1: cites {cited}, which is not there\n")


@pytest.mark.parametrize(
    "text",
    [
        "/* see src/config/config.c, and base.h. */",
        "/* Only comm sees mpi.h. */",
        "/* s.created, e.g. a.count or x.h5 */",
        'const char *name = "no/such.c";',
        "#include <nowhere.h>",
    ],
)
def test_good_citation_is_not(tree: Path, text: str) -> None:
    (tree / "io" / "new.c").write_text(f"{text}\n")
    assert check(tree) == (0, "")


def function(lines: int, head: str = "int f(int a,\n      int b) {\n") -> str:
    """A definition of so many lines between two others."""
    small = "static int g(void) {\n    return 0;\n}\n"
    body = "    a += b;\n" * (lines - head.count("\n") - 1)
    return f"{small}\n/* F. */\n{head}{body}}}\n\nstruct s {{\n{body}}};\n{small}"


@pytest.mark.parametrize("file", ["src/new.c", "kernels/cuda/new.cu", "tests/unit/new.c"])
def test_long_function_is_found(tree: Path, file: str) -> None:
    path = tree / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(function(60))
    assert check(tree) == (0, "")
    path.write_text(function(61))
    assert check(tree) == (1, f"{file}:6: a function of 61 lines\n")


def test_wrong_folder_is_no_success(tmp_path: Path) -> None:
    found = subprocess.run(
        ["sh", str(ROOT / "tests" / "check_includes.sh"), str(tmp_path)],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 1
