"""Several drivers on one Optuna study: starting trials, and trials whose driver died.

A running trial carries the user attributes `driver` (who runs it) and `alive` (when it was last
heard of). On the driver's machine its process is looked for; elsewhere ten minutes of silence
count as its end. The parameters of a trial that ended that way are queued again.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from identities import changed_setting, difference, inputs
from text_records import InputError

ALIVE_SECONDS = 60.0
SILENT_SECONDS = 600.0
MOST_RETRIES = 2


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
