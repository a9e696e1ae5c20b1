"""tools/search.py and report.py on storage as it is: torn journals, no locks, full and read-only disks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

import report
import search_storage
from test_search import COUNTED, Place, handlers, place, wait_until  # noqa: F401  fixtures

JOURNAL = "journal:runs/s.journal"


def done(place: Place, url: str = JOURNAL) -> int:
    return len(place.study(url=url).get_trials(states=COUNTED))


# -- journals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b'{"op_code":5,"work', b"\0" * 4096, b'{"op_code":0}', b"{"])
def test_a_torn_line_is_cut(place: Place, torn: bytes) -> None:
    """As a full disk or a power failure leaves it; nothing before it is lost."""
    place.search(3, "--seed", 1, "--storage", JOURNAL)
    path = Path("runs/s.journal")
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    place.search(5, "--seed", 1, "--storage", JOURNAL)
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert done(place) == len(place.study(url=JOURNAL).trials) == 5


def test_a_line_is_cut_under_the_lock_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver may be in the middle of its own line."""
    journal = search_storage.Journal(Path("j").absolute())
    held = []
    monkeypatch.setattr(journal._lock, "acquire", lambda: held.append(Path("j").read_bytes()))
    monkeypatch.setattr(journal._lock, "release", lambda: held.append(Path("j").read_bytes()))
    Path("j").write_bytes(b'{"a":1}\n{"b"')
    assert list(journal.read_logs(0)) == [{"a": 1}]
    assert Path("j").read_bytes() == b'{"a":1}\n{"b"'
    journal.append_logs([{"c": 2}])
    assert held == [b'{"a":1}\n{"b"', b'{"a":1}\n{"c":2}\n']


def test_a_damaged_line_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.search(1, "--storage", JOURNAL)
    lines = Path("runs/s.journal").read_bytes().splitlines(keepends=True)
    Path("runs/s.journal").write_bytes(b"".join([*lines[:3], b"{broken\n", *lines[3:]]))
    place.search(2, "--storage", JOURNAL, status=1)
    assert "s.journal: entry 4 is damaged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("content", [b"\x88\1\0\0", b'{"op": 1}', b'{"op_code"}\n', b"seed: 1\n"])
def test_a_file_of_something_else_stays_as_it_is(
    place: Place, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    """Without a line break at its end it would look like a journal's torn line, which is cut."""
    path = Path("model.safetensors")
    path.write_bytes(content)
    place.search(1, "--storage", f"journal:{path}", status=2)
    assert "model.safetensors: not a journal of Optuna" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_bytes() == content


def limited(place: Place, trials: int, url: str, size: int) -> subprocess.CompletedProcess:
    """A search whose files cannot grow beyond a size, as on a disk that is full."""
    arguments = place.arguments(trials, "--storage", url, "--seed", 1)
    tool = [sys.executable, search_storage.__file__.replace("search_storage", "search")]
    command = ["prlimit", f"--fsize={size}", *tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("url", [JOURNAL, "sqlite:///runs/s.db"])
def test_a_full_disk_ends_the_search_in_one_line(place: Place, url: str) -> None:
    place.search(2, "--seed", 1, "--storage", url)
    file = Path("runs/s.journal" if url == JOURNAL else "runs/s.db")
    ended = limited(place, 9, url, file.stat().st_size + 3000)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("search.py: ")
    assert "the same command continues" in ended.stderr.splitlines()[-1]
    kept = done(place, url)
    assert 2 <= kept < 9
    place.search(9, "--seed", 1, "--storage", url)
    assert done(place, url) == 9


def test_a_failed_append_leaves_no_part(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = search_storage.Journal(Path("j").absolute())
    journal.append_logs([{"a": 1}])

    def short_write(file: int, data: bytes) -> int:
        if len(data) < 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole_write(file, data[:8])

    whole_write = os.write
    monkeypatch.setattr(os, "write", short_write)
    with pytest.raises(OSError) as failed:
        journal.append_logs([{"b": 2, "c": "four"}])
    assert failed.value.filename == str(Path("j").absolute())
    assert Path("j").read_bytes() == b'{"a":1}\n' and not Path("j.lock").is_symlink()


# -- locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Said once, and the search goes on."""
    monkeypatch.setattr(search_storage, "_warned", set())

    def no_lock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    place.search(4, "--storage", JOURNAL)
    assert done(place) == 4
    assert capsys.readouterr().err.count("file locks do not work here") == 1


def test_optunas_locks_in_turn(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, then a file that must be new, then none; each where the file system has the other not."""
    monkeypatch.setattr(search_storage, "_warned", set())

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    lock = search_storage._JournalLock(Path("j").absolute())
    Path("j").touch()
    lock.acquire()
    assert Path("j.lock").is_symlink() and Path("j.lock").exists(), "the link leads to the journal"
    lock.release()
    monkeypatch.setattr(JournalFileSymlinkLock, "acquire", refuse)
    lock.acquire()
    assert Path("j.lock").is_file() and not Path("j.lock").is_symlink()
    os.unlink("j.lock")  # a driver that took this one for dead
    lock.release()
    monkeypatch.setattr(JournalFileOpenLock, "acquire", refuse)
    assert lock.acquire()
    lock.release()


def test_a_killed_drivers_lock_that_leads_nowhere_gets_old(place: Place) -> None:
    """As a driver leaves it that was started with a relative path."""
    Path("k").mkdir()
    Path("k/j").touch()
    os.symlink("k/j", "k/j.lock")
    lock = search_storage._JournalLock(Path("k/j").absolute())
    lock._kinds[0].grace_period = 0.3
    began = time.monotonic()
    lock.acquire()
    assert 0.3 < time.monotonic() - began < 20 and Path("k/j.lock").exists()
    lock.release()
    assert os.listdir("k") == ["j"]


def test_relative_paths_lead_to_one_place(place: Place) -> None:
    assert search_storage.storage_file("journal:k/j") == place.folder / "k/j"
    assert search_storage.storage_file("sqlite:///k/s.db") == place.folder / "k/s.db"
    place.search(1, "--storage", "journal:k/j")
    assert done(place, f"journal:{place.folder}/k/j") == 1


# -- read-only mounts ---------------------------------------------------------------------------


def read_only(folder: Path, *command: object) -> subprocess.CompletedProcess:
    """A command that sees the folder mounted read-only; skipped where this user cannot mount."""
    mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    probe = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True)
    if shutil.which("unshare") is None or probe.returncode:
        pytest.skip("no mounts here")
    script = f'{mount} && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *map(str, command)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("url", [JOURNAL, "sqlite:///runs/s.db"])
def test_a_read_only_mount(place: Place, url: str) -> None:
    """A search ends in a line; a report is made all the same."""
    place.search(2, "--storage", url)
    search = [sys.executable, search_storage.__file__.replace("search_storage", "search")]
    ended = read_only(Path("runs").absolute(), *search, *place.arguments(3, "--storage", url))
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "ead-only" in ended.stderr
    made = read_only(Path("runs").absolute(), sys.executable, report.__file__, url, "--out", "page")
    assert made.returncode == 0, made.stderr
    assert "<td>2</td>" in Path("page/report.html").read_text().replace(' class="number"', "")


def test_read_only_report_of_an_open_database(place: Place) -> None:
    """Trials that are in the write-ahead log only are not lost."""
    place.search(1)
    driver_holds = place.study()
    driver_holds.add_trial(optuna.trial.create_trial(value=9.0))
    ended = read_only(
        Path("runs").absolute(), sys.executable, report.__file__, "runs/search/s.db", "--out", "page"
    )
    assert ended.returncode == 0 and "9.000" in Path("page/report.html").read_text()


# -- other ends ---------------------------------------------------------------------------------


def test_output_that_nobody_reads_does_not_end_a_search(place: Place) -> None:
    driver = place.start(5, "--seed", 1)
    driver.stdout.close()
    assert driver.wait(40) == 1  # done, but what it printed was lost
    assert len(place.trials(*COUNTED)) == 5
    with open("/dev/full", "w") as full:
        command = [sys.executable, search_storage.__file__.replace("search_storage", "search")]
        ended = subprocess.run([*command, *place.arguments(6)], stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1 and len(place.trials(*COUNTED)) == 6
    assert ended.stderr.splitlines()[-1] == (
        b"search.py: cannot write to standard output: No space left on device"
    )


def test_hangup_stops_a_search_unless_it_is_ignored(place: Place) -> None:
    place.write(hang=["s/1"])
    driver = place.start(3)
    wait_until(lambda: place.log("id") and place.log("id")[-1]["id"] == "s/1")
    driver.send_signal(signal.SIGHUP)
    assert driver.wait(40) == 3
