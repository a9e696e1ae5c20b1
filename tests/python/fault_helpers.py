"""Making one rank of a job fail, or lie, at a chosen call: tests/python/fault.c, preloaded."""

from __future__ import annotations

import os
from pathlib import Path

from job_helpers import BINARY

LIBRARY = Path(
    os.environ.get("MUDMAN_FAULT_LIBRARY") or BINARY.parent / "tests" / "libfault.so"
).resolve()


def faulty(
    rank: int, function: str, first: int, last: int, action: str, log: Path | None = None
) -> list[str]:
    """The wrapper for a Job whose `rank` (-1: every one) does `action` at these calls of `function`."""
    assert LIBRARY.is_file(), f"{LIBRARY} is not built: build it, or set MUDMAN_FAULT_LIBRARY"
    wrapper = ["env", f"LD_PRELOAD={LIBRARY}"]
    wrapper.append(f"MUDMAN_FAULT={rank} {function} {first} {last} {action}")
    return wrapper + ([f"MUDMAN_FAULT_LOG={log}"] if log else [])
