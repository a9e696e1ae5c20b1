"""Starting mudman-mpi, alone or under mpirun, and reading what a run leaves.

Every call has a time limit: a job that hangs is ended with all its processes, and the test fails.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("MUDMAN_BINARY") or ROOT / "build" / "mudman-mpi").resolve()
LIMIT = 60.0
GROUPS = ("base", "adversary", "retain_acc", "forget_acc", "kept")

# A killed job leaves its launcher's files behind; here they go with the tests.
_launcher_files = tempfile.TemporaryDirectory(prefix="mm-")
_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_btl_vader_backing_directory": _launcher_files.name,
    # Quick starts and ends: no search for networks, no second of grace for ranks that are gone.
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_odls_base_sigkill_timeout": "0",
    # Ranks that wait leave a shared machine's cores to those that work.
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMP_WAIT_POLICY": "passive",
}


@functools.cache
def _kernels() -> dict[str, str]:
    """Where the program would start itself anew with better kernels each time, and say so: those."""
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stderr
    return dict(re.findall(r"starting anew with (OPENBLAS_CORETYPE)=(\w+)$", said, re.M))


def environment(threads: int) -> dict[str, str]:
    """What a job, or a rank of it, is started in.

    Each has a folder for its launcher's files: two that make one folder at once fail in Open MPI 4.
    """
    own = {
        "OMPI_MCA_orte_tmpdir_base": tempfile.mkdtemp(dir=_launcher_files.name),
        "OMP_NUM_THREADS": str(threads),
    }
    return os.environ | _ENVIRONMENT | own | _kernels()


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def messages(self) -> list[str]:
        """The program's last words: the lines that name it, mpirun's own left out."""
        return [line for line in self.err.splitlines() if line.startswith("mudman-mpi: ")]


class Job:
    """A job that runs: the program alone, or an mpirun (of several ranks, or with `launcher`).

    `wrapper` is a command that starts the program, each rank of it: prlimit, for instance;
    `binary` is another build of the program; `env` has more of its environment.
    """

    def __init__(
        self,
        *arguments: object,
        ranks: int = 1,
        threads: int = 1,
        launcher: bool = False,
        wrapper: Sequence[str] = (),
        cwd: Path | None = None,
        binary: Path = BINARY,
        env: Mapping[str, str] = MappingProxyType({}),
    ):
        assert binary.is_file(), f"{binary} is not built: build it, or set MUDMAN_BINARY"
        self._binary = binary
        mpirun = ["mpirun", "-n", str(ranks), "--bind-to", "none"]
        before = mpirun if launcher or ranks > 1 else []
        self.command = [*before, *wrapper, str(binary), *map(str, arguments)]
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(threads) | dict(env),
            start_new_session=True,
        )

    def _members(self) -> Iterator[int]:
        """The processes of the job's session: mpirun gives each rank a process group of its own."""
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, UnicodeDecodeError):
                continue
            if entry.name.isdigit() and int(fields[3]) == self._process.pid and fields[0] != "Z":
                yield int(entry.name)

    def ranks(self) -> list[int]:
        """The process ids of the ranks."""
        found = []
        for pid in self._members():
            try:
                if Path(f"/proc/{pid}/exe").resolve() == self._binary:
                    found.append(pid)
            except OSError:
                continue
        return found

    def signal_ranks(self, number: int, most: int = 1 << 30) -> None:
        """Send a signal to the ranks themselves, as srun does, or to the first `most` of them."""
        for pid in self.ranks()[:most]:
            os.kill(pid, number)

    def signal_launcher(self, number: int) -> None:
        """Send a signal to mpirun, which forwards SIGUSR1 and SIGUSR2."""
        self._process.send_signal(number)

    def kill(self) -> Outcome:
        """SIGKILL to every process of the job, as if the machine went away."""
        for pid in sorted(self._members()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return self.wait()

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], bool], limit: float = LIMIT) -> None:
        """Wait for something that the running job does."""
        end = time.monotonic() + limit
        while not condition():
            if not self.running() or time.monotonic() > end:
                out = self.kill()
                pytest.fail(f"{self.command}: ended or waited in vain\n{out.out}{out.err}")
            time.sleep(0.002)

    def wait(self, limit: float = LIMIT) -> Outcome:
        try:
            out, err = self._process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.command}: did not end within {limit} s")
        return Outcome(self._process.returncode, out, err, time.monotonic() - self.started)


def mudman(*arguments: object, limit: float = LIMIT, **options: object) -> Outcome:
    """Run to the end; options are Job's."""
    return Job(*arguments, **options).wait(limit)


def succeed(*arguments: object, **options: object) -> Outcome:
    """Run to the end and expect success."""
    outcome = mudman(*arguments, **options)
    assert outcome.status == 0, f"{arguments}: exit {outcome.status}\n{outcome.out}{outcome.err}"
    return outcome


def fail(status: int, *arguments: object, **options: object) -> str:
    """Run to the end, expect this exit status and exactly one message; return it."""
    outcome = mudman(*arguments, **options)
    assert outcome.status == status, (
        f"{arguments}: exit {outcome.status}\n{outcome.out}{outcome.err}"
    )
    assert len(outcome.messages) == 1, outcome.err
    return outcome.messages[0]


def repeatable_plan(out: str) -> str:
    """What plan prints, but for what the process itself held and what that is part of."""
    part = r"^(program and libraries|sum|peak|model.shard: auto|host memory)\b.*\n"
    return re.sub(part, "", out, flags=re.M)


# -- what a run leaves ------------------------------------------------------------------------


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def metrics_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, which must be whole and strict JSON."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=_no_constant) for line in text.splitlines()]


def lines_of(run: Path, phase: str) -> list[dict]:
    return [line for line in metrics_of(run) if line["phase"] == phase]


def result_of(run: Path) -> dict:
    """The last line, and the only one of its phase."""
    assert len(lines_of(run, "result")) == 1
    last = metrics_of(run)[-1]
    assert last["phase"] == "result"
    return last


def repeatable_metrics(run: Path) -> list[str]:
    """The lines as text, the numbers digit by digit, without time and memory."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [re.sub(r'"(seconds|peak_bytes)":[^,}]*', r'"\1":0', line) for line in text.splitlines()]


def checkpoints_of(run: Path) -> list[int]:
    """The finished checkpoints, in loops."""
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def state_of(run: Path, loops: int | None = None) -> dict[str, np.ndarray]:
    """b, a and m of a checkpoint (default: the newest), each tensor whole: 'base/<tensor>', ..."""
    loops = checkpoints_of(run)[-1] if loops is None else loops
    state = {}
    with h5py.File(run / "checkpoints" / str(loops) / "checkpoint.h5") as file:
        for group in GROUPS:
            for name in file.get(group, ()):
                state[f"{group}/{name}"] = file[group][name][:]
    assert state and all(not np.isnan(values).any() for values in state.values())
    return state


def assert_same_state(left: Path, right: Path, loops: int | None = None) -> None:
    """The checkpoints hold the same tensors, bit for bit."""
    a, b = state_of(left, loops), state_of(right, loops)
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert values.dtype == b[name].dtype and values.shape == b[name].shape
        different = int((values.view(np.uint8) != b[name].view(np.uint8)).sum())
        assert different == 0, f"{name}: {different} bytes differ"


def assert_same_run(left: Path, right: Path) -> None:
    """Two finished runs: state, every digit of the metrics, and the exported model are the same."""
    lines, others = repeatable_metrics(left), repeatable_metrics(right)
    for line, other in zip(lines, others):
        assert line == other
    assert len(lines) == len(others)
    assert_same_state(left, right)
    assert snapshot(left / "model") == snapshot(right / "model")


def assert_close(what: str, values: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """|values - expected| <= tolerance · max |expected| everywhere."""
    assert values.shape == expected.shape
    off = np.abs(np.asarray(values, dtype=float) - expected).max()
    largest = np.abs(expected).max()
    assert off <= tolerance * largest, f"{what}: off by {off:.3g} of {largest:.3g}"


def assert_close_state(left: Path, right: Path, tolerance: float = 1e-5) -> None:
    """The checkpoints hold the same tensors but for rounding."""
    a, b = state_of(left), state_of(right)
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert_close(name, values, b[name].astype(float), tolerance)


def assert_close_metrics(left: Path, right: Path, tolerance: float = 1e-5) -> None:
    """The same lines with the same numbers but for rounding."""
    a, b = metrics_of(left), metrics_of(right)
    assert [line.keys() for line in a] == [line.keys() for line in b]
    for one, other in zip(a, b):
        for key in one.keys() - {"seconds", "peak_bytes"}:
            expected = other[key]
            if isinstance(expected, float):
                expected = pytest.approx(expected, rel=tolerance, abs=tolerance)
            assert one[key] == expected, f"{key} of {one}"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
