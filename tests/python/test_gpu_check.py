"""tools/gpu_check.sh rehearsed with stand-ins for the GPU, the toolkit and the programs: every branch of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUT = "build-gpu/gpu_check.txt"
# The commands of the machine. What a scenario changes is an environment variable.
COMMANDS = {
    "nvidia-smi": """case "$*" in
*compute_cap*) [ -z "$NO_GPU" ] && echo 9.0 ;;
*memory.used*) echo 500 ;;
*list-gpus*) for i in $(seq "${GPUS:-1}"); do echo "GPU $i"; done ;;
*name,driver*) echo "Stand-in, 1.0, ${MEMORY:-80000} MiB" ;;
esac""",
    "nvcc": "echo 'Cuda compilation tools, release 13.0'",
    "cmake": """case "$*" in *--build*) ;; *) echo "$*" >cmake.options; exit 0 ;; esac
[ -z "$NO_BUILD" ] || { echo 'error: no such header'; exit 1; }
mkdir -p build-gpu/tests
for name in mudman-mpi tests/test_ops_cuda tests/test_ops_loss_cuda tests/bench_gpu tests/bench_loop \\
    ${NO_NCCL:-tests/test_comm_rows_cuda}; do
    cp program "build-gpu/$name"
done""",
    "ctest": """[ -z "$SLOW" ] || sleep 20
[ -z "$SKIPPED" ] || echo '1/1 Test #1: gpu_ops ......***Skipped'
[ -z "$WRONG" ] || { echo '1/1 Test #1: gpu_ops ......***Failed'; exit 8; }""",
    "compute-sanitizer": '[ "$2" != "$HAZARD" ] || { echo "a hazard in $8"; exit 9; }',
    "mpirun": 'while [ "${1#-}" != "$1" ] || [ "$1" = none ] || [ "$1" = 2 ]; do shift; done; exec "$@"',
    "python3": 'case "$*" in *bench_peer*) echo "beside PyTorch: $*" ;; esac',
    "git": "echo 0123abcd",
}
# All programs of the build in one: a run writes what the demo compares.
PROGRAM = """#!/bin/sh
case "$0" in
*bench_gpu) echo "a table of $2"; [ "$2" != "$TOO_LARGE" ] || { echo 'GPU memory: 1 bytes asked for'; exit 1; } ;;
*test_comm_rows_cuda) exit "${COMM_FAILS:-0}" ;;
*mudman-mpi)
    for word in "$@"; do case "$word" in output.dir=*) dir=${word#output.dir=} ;; esac; done
    mkdir -p "$dir/model"
    case "$dir" in *second) echo "$OTHER_BITS" >"$dir/model/m.safetensors" ;;
    *) echo >"$dir/model/m.safetensors" ;; esac
    for i in $(seq 60); do echo '{"phase":"unlearn"}'; done >"$dir/metrics.jsonl" ;;
esac
"""
EXPECTED = ["build", "ctest-gpu", "bench_gpu-llama-1b", "demo", "nccl", "memory", "bench_gpu-smollm-135m",
            "bench_gpu-pythia-14m", "memcheck", "racecheck", "bench_peer"]  # fmt: skip


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/bash\n" + text + "\n" if not text.startswith("#!") else text)
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A tree with the script, and a folder of commands."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "gpu_check.sh", tmp_path / "tools")
    for folder in ("bin", "src", "io", "comm", "kernels", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "CMakeLists.txt").touch()
    for name, text in COMMANDS.items():
        script(tmp_path / "bin" / name, text)
    script(tmp_path / "program", PROGRAM)
    return tmp_path


def rehearse(place: Path, **scenario: str) -> tuple[int, dict[str, str], str]:
    """The exit status, what is said of every step, and the whole file."""
    without = scenario.pop("without", "")
    if without:
        (place / "bin" / without).unlink()
    path = f"{place / 'bin'}:/usr/bin:/bin"
    done = subprocess.run([place / "tools" / "gpu_check.sh"], env={"PATH": path, **scenario}, capture_output=True)
    text = (place / OUT).read_text()
    words = ("passed", "FAILED", "TOO SLOW", "skipped")
    said = {}
    for line in text.splitlines():
        for word in words:
            if line.startswith(word):
                for step in line[len(word) :].partition("(")[0].partition(":")[0].split(","):
                    said[step.strip()] = word
    return done.returncode, said, text


def test_all_is_well(place: Path) -> None:
    status, said, text = rehearse(place, GPUS="2")
    assert status == 0 and "all checks passed" in text, text
    assert list(said) == EXPECTED and set(said.values()) == {"passed"}
    assert "a table of llama-1b" in text and "beside PyTorch" in text and "by the driver" in text
    assert "GPU      Stand-in, 1.0, 80000 MiB" in text and "commit   0123abcd" in text
    assert "-DCMAKE_CUDA_ARCHITECTURES=90 -DCMAKE_CUDA_FLAGS=-lineinfo" in (place / "cmake.options").read_text()


@pytest.mark.parametrize(
    ("scenario", "failed"),
    [
        ({"WRONG": "1"}, "ctest-gpu"),
        ({"SKIPPED": "1"}, "ctest-gpu"),
        ({"OTHER_BITS": "x"}, "demo"),
        ({"HAZARD": "memcheck"}, "memcheck"),
        ({"HAZARD": "racecheck"}, "racecheck"),
        ({"COMM_FAILS": "1"}, "nccl"),
    ],
)
def test_one_check_fails(place: Path, scenario: dict[str, str], failed: str) -> None:
    """It is said, with what the step wrote; the rest goes on."""
    status, said, text = rehearse(place, GPUS="2", **scenario)
    assert status == 1 and "CHECKS FAILED" in text
    assert [step for step, word in said.items() if word != "passed"] == [failed], text
    assert list(said) == EXPECTED


def test_one_gpu_without_tools(place: Path) -> None:
    status, said, text = rehearse(place, without="compute-sanitizer")
    assert status == 0, text
    assert said["nccl"] == said["memcheck"] == said["racecheck"] == "skipped"
    assert "skipped  nccl: one GPU" in text


def test_two_gpus_without_nccl(place: Path) -> None:
    status, said, text = rehearse(place, GPUS="2", NO_NCCL="tests/bench_loop")
    assert status == 0 and said["nccl"] == "skipped", text
    assert "not in this build, see NCCL_HOME" in text


def test_a_small_gpu(place: Path) -> None:
    """What does not fit is a figure that is not there, no failed check."""
    status, said, text = rehearse(place, MEMORY="40000", TOO_LARGE="llama-1b")
    assert status == 0 and said["bench_gpu-llama-1b"] == "FAILED", text
    assert "GPU memory: 1 bytes asked for" in text and said["bench_gpu-smollm-135m"] == "passed"


def test_too_little_time(place: Path) -> None:
    status, said, text = rehearse(place, SLOW="1", GPU_CHECK_SECONDS="2")
    assert status == 1 and said["build"] == "passed" and said["ctest-gpu"] == "TOO SLOW", text
    assert said["memcheck"] == "TOO SLOW" and "no time was left" in text


def test_nothing_to_run(place: Path) -> None:
    status, said, text = rehearse(place, NO_BUILD="1")
    assert status == 1 and said == {"build": "FAILED"} and "no such header" in text
    status, said, text = rehearse(place, NO_GPU="1")
    assert status == 1 and "no GPU: nvidia-smi answers nothing" in text
