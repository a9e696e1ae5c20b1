"""How the tools end: faults of the machine are told from bad input, and prints that are lost."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

FAILED, BAD_INPUT = 1, 2
# What no other argument would mend: full and read-only disks, storage that is gone, closed pipes.
FAULTS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.EPIPE)
)

_unwritable: list[str] = []


def fault_status(error: OSError) -> int:
    """The exit status that an error of the system means."""
    return FAILED if error.errno in FAULTS else BAD_INPUT


def fault_words(error: OSError) -> str:
    """File and reason in one line."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def say(text: str) -> None:
    """Print a line of something that goes on where nobody can read it any more."""
    try:
        print(text, flush=True)
    except OSError as error:
        lose_output(error)


def lose_output(error: OSError) -> None:
    """Standard output failed: what follows goes nowhere, and `run_tool` says so."""
    _unwritable.append(error.strerror or str(error))
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_tool(name: str, main: Callable[[], int]) -> int:
    """Run a tool's main; status 1 where it succeeded but what it printed was lost."""
    status = main()
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.flush()
    except OSError as error:
        lose_output(error)
    if _unwritable and status == 0:
        print(f"{name}: cannot write to standard output: {_unwritable[0]}", file=sys.stderr)
        return FAILED
    return status
