"""Several drivers on one Optuna study: opening it, starting trials, and trials whose driver died.

A running trial carries the user attributes `driver` (who runs it) and `alive` (when it was last
heard of). On the driver's machine its process is looked for; elsewhere ten minutes of silence
count as its end. The parameters of a trial that ended that way are queued again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from identities import changed_setting, difference, inputs
from text_records import InputError

JOURNAL = "journal:"
ALIVE_SECONDS = 60.0
SILENT_SECONDS = 600.0
MOST_RETRIES = 2
OPEN_ATTEMPTS = 5


def storage_file(url: str) -> Path | None:
    """The file of journal:PATH or sqlite:///PATH; None for a database server."""
    if url.startswith(JOURNAL):
        return Path(url.removeprefix(JOURNAL))
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(f"--storage {url}: neither journal:PATH nor a database's URL") from None
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(parsed.database) if is_file else None


def open_storage(url: str) -> BaseStorage:
    """Open journal:PATH or a database's URL; a file is made in a folder that exists."""
    path = storage_file(url)
    try:
        if url.startswith(JOURNAL):
            return JournalStorage(JournalFileBackend(str(path)))
        # SQLite lets one process write at a time: the others wait this long.
        connect = {"timeout": 60, "factory": _QuickConnection} if path else {}
        return _open_database(url, {"connect_args": connect})
    except (OSError, ImportError, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--storage {url}: {reason}") from None


class _QuickConnection(sqlite3.Connection):
    """No wait for the disk at each of the thirty writes of a trial: a killed process loses nothing
    all the same, and a power failure the last moments at most."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode = WAL")
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


@contextmanager
def one_driver_at_a_time(url: str) -> Iterator[None]:
    """While this driver decides what to start, no other does.

    A lock file beside a storage file, whose folder is made; a killed driver's lock is free. A
    database server keeps one trial from being claimed twice by itself; there drivers may run a
    trial too many.
    """
    path = storage_file(url)
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(f"{path}.drivers", "a")
    except OSError as error:
        raise InputError(f"--storage {url}: {error.filename}: {error.strerror}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _place() -> str:
    """This machine since its start, and this container of it: where process ids mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _process_start(pid: int) -> int | None:
    """When a process started, in ticks: process ids come again. None: it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def mark_own(trial: Trial) -> None:
    pid = os.getpid()
    driver = {"place": _place(), "pid": pid, "started": _process_start(pid)}
    trial.set_user_attr("driver", driver)
    mark_alive(trial)


def mark_alive(trial: Trial) -> None:
    trial.set_user_attr("alive", int(time.time()))


def is_alive(trial: FrozenTrial) -> bool:
    """Whether the driver of a running trial still runs."""
    driver = trial.user_attrs.get("driver")
    if driver and driver["place"] == _place():
        return _process_start(driver["pid"]) == driver["started"]
    seen = trial.user_attrs.get("alive") or trial.datetime_start.timestamp()
    return time.time() - seen < SILENT_SECONDS


def give_up(study: optuna.Study, trial: FrozenTrial, reason: str, blame: bool) -> None:
    """Mark a running trial failed and queue its parameters again, unless blamed a third time."""
    storage, retries = study._storage, trial.user_attrs.get("retries", 0) + blame
    try:
        storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return  # another driver was first
    if trial.params and retries <= MOST_RETRIES:
        study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number, "retries": retries})


def trials_in(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def recover(study: optuna.Study) -> None:
    """Give up the running trials of drivers that are gone."""
    for trial in trials_in(study, TrialState.RUNNING):
        if not is_alive(trial):
            give_up(study, trial, "its driver ended", blame=True)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: done, or pruned."""
    return trials_in(study, TrialState.COMPLETE, TrialState.PRUNED)


def hold_identity(study: optuna.Study, ready: dict[str, Any]) -> list[str]:
    """Hold the inputs and settings of a trial server, as it says them when it is ready, against
    those that the study began with; the study takes them where it has none. Returns remarks."""
    now = {key: ready[key] for key in ("identity", "settings") if key in ready}
    before = {key: study.user_attrs.get(f"base_{key}") for key in now}
    for key in now:
        if before[key] is None:
            study.set_user_attr(f"base_{key}", now[key])
    if now and before["identity"] is None:
        old = finished(study)
        words = f"study {study.study_name} began without hashes of its inputs: from now on it has"
        return [f"{words} them, and its first {len(old)} trials are not compared"] if old else []
    for compare, left, right in (
        (difference, inputs(before.get("identity")), inputs(now.get("identity"))),
        (changed_setting, before.get("settings") or {}, now.get("settings") or {}),
    ):
        if key := compare(left, right):
            raise InputError(
                f"{key}: was {left.get(key)} when the study {study.study_name} began, and is now "
                f"{right.get(key)}; its trials would not compare: choose another --study, or put "
                "it back"
            )
    if not now:
        return []
    versions = [both.get("program") for both in (before.get("identity") or {}, ready["identity"])]
    if versions[0] != versions[1]:
        words = f"study {study.study_name} began with version {versions[0]} of the program"
        return [f"{words}, and goes on with {versions[1]}"]
    return []
