"""Where studies are kept: opening a storage, and what shared file systems do to it.

An Optuna journal may end in a part of a line, where a disk was full or a machine went down: the next
driver that writes cuts it, under the lock. A file system without locks is said once, and the search
goes on without them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileOpenLock,
    JournalFileSymlinkLock,
)
from optuna.storages.journal._file import BaseJournalFileLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from text_records import InputError
from tool_ends import FAULTS

JOURNAL = "journal:"
OPEN_ATTEMPTS = 5
# What a file system says that has no such lock.
NO_LOCKS = frozenset(
    (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.EIO)
)


class StorageError(Exception):
    """The storage failed; the message is one line."""


# What reading and writing of studies may raise when the storage fails.
STORAGE_FAULTS = (StorageError, StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError)


def storage_words(error: Exception) -> str:
    """The reason in one line: of a database's error what the database said."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
    return str(cause).strip().split("\n")[0] or type(cause).__name__


def storage_file(url: str) -> Path | None:
    """The file of journal:PATH or sqlite:///PATH; None for a database server."""
    if url.startswith(JOURNAL):
        if not (path := url.removeprefix(JOURNAL)):
            raise InputError(f"--storage {url}: journal:PATH needs a path")
        return Path(path).absolute()
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(f"--storage {url}: neither journal:PATH nor a database's URL") from None
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(parsed.database).absolute() if is_file else None


def open_storage(url: str) -> BaseStorage:
    """Open journal:PATH or a database's URL; a file is made in a folder that exists."""
    path = storage_file(url)
    try:
        if url.startswith(JOURNAL):
            return JournalStorage(Journal(path))
        # SQLite lets one process write at a time: the others wait this long.
        connect = {"timeout": 60, "factory": _QuickConnection} if path else {}
        return _open_database(url, {"connect_args": connect})
    except (ImportError, *STORAGE_FAULTS) as error:
        raise opening_error(url, error) from None


def opening_error(url: str, error: Exception) -> Exception:
    """What to raise where a storage cannot be opened: a fault of the machine is no bad input."""
    words = f"--storage {url}: {storage_words(error)}"
    machine = isinstance(error, StorageError) or getattr(error, "errno", None) in FAULTS
    return StorageError(words) if machine else InputError(words)


class _QuickConnection(sqlite3.Connection):
    """No wait for the disk at each of the thirty writes of a trial: a killed process loses nothing
    all the same, and a power failure the last moments at most."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        try:
            self.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            return  # a file system without shared memory: slower, and safe without
        self.execute("PRAGMA synchronous = NORMAL")


def _open_database(url: str, engine: dict) -> RDBStorage:
    """Drivers that start at once may all try to make the tables: all but one find them made."""
    for attempt in range(OPEN_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=engine)
        except SQLAlchemyError:
            if attempt == OPEN_ATTEMPTS - 1:
                raise
            time.sleep(0.5)
    raise AssertionError


# -- journals -----------------------------------------------------------------------------------


_FIRST_BYTES = b'{"op_code":'


class Journal(JournalFileBackend):
    """Optuna's journal of which every line stays whole."""

    def __init__(self, path: Path):
        # Absolute: Optuna's lock is a link to the journal by this very path, and recovers from a
        # killed holder only where the link leads there.
        super().__init__(str(path), lock_obj=_JournalLock(path))
        # What looks like a torn line is cut later; a file of something else must not be.
        with open(path, "rb") as file:
            head = file.read(len(_FIRST_BYTES))
        if head.strip(b"\0") and not _FIRST_BYTES.startswith(head):
            raise InputError(f"{path}: not a journal of Optuna")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        number = log_number_from
        try:
            for number, log in enumerate(super().read_logs(log_number_from), log_number_from + 1):
                yield log
        except ValueError:
            raise StorageError(f"{self._file_path}: entry {number + 1} is damaged") from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            file = os.open(self._file_path, os.O_RDWR | os.O_APPEND)
            try:
                self._append(file, lines)
            finally:
                os.close(file)
        except OSError as error:
            error.filename = error.filename or self._file_path
            raise
        finally:
            self._lock.release()

    def _append(self, file: int, lines: bytes) -> None:
        """All of the lines behind the last whole one, or nothing."""
        end = _end_of_lines(file)
        if end < os.fstat(file).st_size:
            os.ftruncate(file, end)
        try:
            left = lines
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise


def _end_of_lines(file: int, step: int = 1 << 16) -> int:
    """Where the last whole line ends."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - step)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


class _LinkLock(JournalFileSymlinkLock):
    """Optuna's link, also where a killed driver left one that leads nowhere: made by a relative
    path, it does, and Optuna then never finds it old."""

    def acquire(self) -> bool:
        seen, since = None, time.monotonic()
        while os.path.islink(self._lock_file) and not os.path.exists(self._lock_file):
            try:
                made = os.lstat(self._lock_file).st_mtime
                if made != seen:
                    seen, since = made, time.monotonic()
                if time.monotonic() - since > self.grace_period:
                    self.release()
                time.sleep(0.1)
            except (FileNotFoundError, RuntimeError):
                continue  # its holder, or another driver, removed it
        return super().acquire()


class _JournalLock(BaseJournalFileLock):
    """The first of Optuna's locks that the file system has, or none."""

    def __init__(self, path: Path):
        self._path = path
        self._kinds = [_LinkLock(str(path)), JournalFileOpenLock(str(path))]
        self._held: BaseJournalFileLock | None = None

    def acquire(self) -> bool:
        while self._kinds:
            try:
                self._kinds[0].acquire()
                self._held = self._kinds[0]
                return True
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self._kinds.pop(0)
                if not self._kinds:
                    _warn_of_locks(self._path, error)
        return True

    def release(self) -> None:
        held, self._held = self._held, None
        try:
            if held:
                held.release()
        except RuntimeError:
            pass  # another driver took this one for dead


# -- one driver at a time -----------------------------------------------------------------------

_warned: set[str] = set()


def _warn_of_locks(path: Path, error: OSError) -> None:
    if str(path) not in _warned:
        print(
            f"search.py: warning: {path}: file locks do not work here ({error.strerror}): going "
            "on without; of several drivers some may run a trial too many",
            file=sys.stderr,
        )
    _warned.add(str(path))


@contextmanager
def one_driver_at_a_time(url: str) -> Iterator[None]:
    """While this driver decides what to start, no other does.

    A lock file beside a storage file, whose folder is made; a killed driver's lock is free. A
    database server keeps one trial from being claimed twice by itself; there, and where the file
    system has no locks, drivers may run a trial too many.
    """
    path = storage_file(url)
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(f"{path}.drivers", "a")
    except OSError as error:
        raise opening_error(url, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _warn_of_locks(path, error)
        yield
