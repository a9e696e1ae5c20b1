"""tools/search.py with a stand-in for the trial server: searching, continuing, dying, sharing."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import search as search_tool
import search_storage
import search_study
from search_config import Range

TOOL = Path(search_tool.__file__)
FAKE = Path(__file__).with_name("fake_trial_server.py")
LIMIT = 120.0
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)

BASE = "unlearn: {passes: 120, retain_loss_budget: 0.05}\nrelearn: {passes: 120}\n"
SEARCH = """\
config: base.yaml
overrides: {evaluate.batches: 2, data.forget: other.h5}
parameters:
  unlearn.unlearning_rate: {low: 1e-4, high: 0.1, log: true}
  unlearn.fork_every_n_loops: {low: 6, high: 42, int: true}
last: 5
"""
VARIANTS = """\
variants:
  mudman:
  tar:
    overrides: {unlearn.use_masking: false}
    parameters: {unlearn.unlearning_rate: {high: 0.01}}
baseline: true
"""


@dataclass
class Place:
    """A folder to search in, with the tool called there."""

    folder: Path

    def write(self, text: str = SEARCH, **settings: object) -> None:
        """The search file, and how the server behaves."""
        (self.folder / "s.yaml").write_text(text)
        settings["log"] = str(self.folder / "log")
        (self.folder / "fake.json").write_text(json.dumps(settings))

    def arguments(self, trials: int, *more: object) -> list[str]:
        server = f"{sys.executable} {FAKE} {self.folder}/fake.json"
        return ["s.yaml", "--trials", str(trials), "--server", server, *map(str, more)]

    def search(self, trials: int, *more: object, status: int = 0) -> None:
        """With a seed: which trials the stand-in rejects is then the same each time."""
        if "--seed" not in more:
            more += ("--seed", 1)
        assert search_tool.main(self.arguments(trials, *more)) == status

    def start(self, trials: int, *more: object) -> subprocess.Popen:
        command = [sys.executable, str(TOOL), *self.arguments(trials, *more)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def log(self, key: str) -> list[dict]:
        """The server's notes that have this field."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if key in line]

    def study(self, name: str = "s", url: str = "sqlite:///runs/search/s.db") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=search_storage.open_storage(url))

    def trials(self, *states: TrialState, name: str = "s") -> list[FrozenTrial]:
        return self.study(name).get_trials(states=states or None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    made = Place(tmp_path)
    made.write()
    return made


@pytest.fixture(autouse=True)
def handlers() -> Callable[[], None]:
    """The tool sets signal handlers; the tests keep theirs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- searching --------------------------------------------------------------------------------


def test_search_of_two_variants(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(SEARCH + VARIANTS)
    place.search(6, "--seed", 1)
    out = capsys.readouterr().out
    fixed = ["trials", "base.yaml", "evaluate.batches=2", "data.forget=other.h5"]
    assert [line["start"] for line in place.log("start")] == [fixed]
    assert place.log("id")[0]["overrides"] == {"unlearn.loops": 0}
    for variant in ("mudman", "tar"):
        study = place.study(f"s-{variant}")
        about = study.user_attrs
        assert about["variant"] == variant and about["config"] == "base.yaml"
        assert about["baseline_forget_loss"] == 0.2 and about["baseline_score"] == 0.25
        assert about["parameters"]["unlearn.unlearning_rate"]["log"] is True
        assert len(study.get_trials(states=COUNTED)) == len(study.trials) == 6
        values = [t.value for t in study.get_trials(states=[TrialState.COMPLETE])]
        last = values[-5:]
        mean, error = statistics.fmean(last), statistics.pstdev(last) / math.sqrt(len(last))
        words = f"{max(values):.4f}  last {len(last)}: {mean:.4f} ± {error:.4f}"
        row = next(line for line in out.splitlines() if line.startswith(variant + "  "))
        assert row.endswith(words)
        assert f"{variant} 6/6 [" in out and " trials/h, " in out
    assert "relearning only: 0.2500" in out
    tar = [line["overrides"] for line in place.log("id") if "-tar/" in line["id"]]
    assert all(o["unlearn.use_masking"] is False for o in tar)
    assert all(1e-4 <= o["unlearn.unlearning_rate"] <= 0.01 for o in tar)
    assert all(type(o["unlearn.fork_every_n_loops"]) is int for o in tar)
    assert max(t.number for t in place.trials(name="s-tar")) == 5


def test_trial_attributes(place: Place) -> None:
    place.search(10, "--seed", 1)
    at_start = {k: v for k, v in place.study().user_attrs.items() if k.startswith("baseline_")}
    figures = {"forget_loss": 0.2, "retain_loss": 0.3, "accuracy_mmlu": 0.31}
    assert at_start == {f"baseline_{figure}": value for figure, value in figures.items()}
    done, rejected = place.trials(TrialState.COMPLETE)[0], place.trials(TrialState.PRUNED)[0]
    assert done.value == done.user_attrs["score"]
    assert done.user_attrs["retain_loss_unlearn"] > 0.3 and done.user_attrs["seconds"] > 0
    assert list(done.intermediate_values) == [60, 120, 180, 240]
    assert done.intermediate_values[240] == pytest.approx(done.value + 1 / 120)
    assert [e["at"] for e in done.user_attrs["evaluations"]] == ["unlearn"] * 2 + ["relearn"] * 2
    assert rejected.user_attrs["status"] == "rejected"
    assert rejected.user_attrs["reason"].startswith("retain loss 0.3")
    assert rejected.params["unlearn.unlearning_rate"] > 0.05


def test_continued_search_is_the_same(place: Place) -> None:
    place.search(13, "--seed", 3, "--study", "whole")
    whole = optuna.load_study(study_name="whole", storage="sqlite:///runs/search/whole.db")
    place.search(6, "--seed", 3)
    place.search(6, "--seed", 3)
    assert len(place.trials()) == 6
    place.search(13, "--seed", 3)
    assert [t.params for t in place.trials()] == [t.params for t in whole.trials]
    assert len({t.params["unlearn.unlearning_rate"] for t in whole.trials}) == 13
    place.search(2, "--study", "other", "--seed", 4)
    other = optuna.load_study(study_name="other", storage="sqlite:///runs/search/other.db")
    assert other.trials[0].params != whole.trials[0].params


def test_pruning_by_accuracy(place: Place) -> None:
    place.write(SEARCH + "pruning: {accuracy_mmlu: {below: 0.298}}\n", expect_prune_below=0.298)
    place.search(8, "--seed", 1)
    pruned = [t for t in place.trials() if t.params["unlearn.unlearning_rate"] > 0.002]
    kept = [t for t in place.trials() if t.params["unlearn.unlearning_rate"] <= 0.002]
    assert pruned and kept and all(t.state == TrialState.COMPLETE for t in kept)
    assert all(t.state == TrialState.PRUNED for t in pruned)
    asked = [t for t in pruned if t.user_attrs["status"] == "pruned"]
    assert asked and all("is below 0.298" in t.user_attrs["reason"] for t in asked)
    assert all(len(t.user_attrs["evaluations"]) == 1 for t in asked)


def test_minimizing_another_figure(place: Place) -> None:
    place.write(SEARCH + "objective: retain_loss_unlearn\ndirection: minimize\n")
    place.search(8, "--seed", 1)
    done = place.trials(TrialState.COMPLETE)
    assert all(t.value == t.user_attrs["retain_loss_unlearn"] for t in done)
    assert place.study().best_value == min(t.value for t in done)


def test_warning_near_an_end(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(SEARCH.replace("high: 0.1", "high: 1e-3"))
    place.search(1)
    place.study().enqueue_trial(
        {"unlearn.unlearning_rate": 9.9e-4, "unlearn.fork_every_n_loops": 12}
    )
    place.search(2)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "search.py: warning: s: the best unlearn.unlearning_rate, 0.00099, is near the upper end "
        "of [0.0001, 0.001]: search beyond it"
    )


@pytest.mark.parametrize(
    ("value", "end"),
    [(1.9e-4, "lower"), (2.1e-4, None), (0.04, None), (0.06, "upper")],
)
def test_nearness_is_of_the_logarithm(value: float, end: str | None) -> None:
    assert Range(1e-4, 0.1, log=True, integer=False).near_edge(value) == end


@pytest.mark.parametrize(("value", "end"), [(9, "lower"), (10, None), (38, None), (39, "upper")])
def test_nearness_of_a_count(value: int, end: str | None) -> None:
    assert Range(6, 42, log=False, integer=True).near_edge(value) == end


# -- dying ------------------------------------------------------------------------------------


def test_killed_server(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Once and twice: the trial is done all the same; a third time: it failed, others follow."""
    place.write(SEARCH.replace("high: 0.1", "high: 0.04"), die={"s/1": 1, "s/3": 2, "s/4": 3})
    place.search(6, "--seed", 2)
    tries = {n: [x["overrides"] for x in place.log("id") if x["id"] == f"s/{n}"] for n in range(7)}
    assert [len(tries[n]) for n in range(7)] == [1, 2, 1, 3, 3, 1, 1]
    assert all(again == all_tries[0] for all_tries in tries.values() for again in all_tries)
    assert [t.number for t in place.trials(TrialState.FAIL)] == [4]
    assert place.trials()[4].user_attrs["reason"] == "the trial server ended: signal 9"
    assert place.trials()[3].state == TrialState.COMPLETE
    assert len(place.trials()[3].user_attrs["evaluations"]) == 4
    assert len(place.log("start")) == 7
    assert "the trial server ended: signal 9: again" in capsys.readouterr().err


def test_server_that_always_dies(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    never_rejected = SEARCH.replace("high: 0.1", "high: 0.04")
    place.write(never_rejected, die={f"s/{n}": 9 for n in range(9)})
    place.search(6, status=1)
    assert len(place.trials(TrialState.FAIL)) == 3
    assert "3 trials in a row failed" in capsys.readouterr().err.splitlines()[-1]


def test_killed_driver(place: Place) -> None:
    """Its trial failed; the next driver runs the same parameters, and the server is gone."""
    place.write(hang=["s/4"])
    driver = place.start(12, "--seed", 5)
    wait_until(lambda: place.log("id") and place.log("id")[-1]["id"] == "s/4")
    driver.kill()
    driver.communicate()
    wait_until(lambda: place.log("end"))
    assert [t.number for t in place.trials(TrialState.RUNNING)] == [4]
    place.search(12, "--seed", 5)
    lost, again = place.trials()[4:6]
    assert lost.state == TrialState.FAIL and lost.user_attrs["reason"] == "its driver ended"
    assert again.params == lost.params and again.user_attrs["retry_of"] == 4
    assert len(place.trials(*COUNTED)) == 12 and len(place.trials()) == 13


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stopped_driver(place: Place, number: signal.Signals) -> None:
    place.write(hang=["s/2"])
    driver = place.start(3)
    wait_until(lambda: place.log("id") and place.log("id")[-1]["id"] == "s/2")
    driver.send_signal(number)
    out, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 3, out
    assert out.splitlines()[-1] == "search.py: stopped; the same command continues"
    assert [line["signal"] for line in place.log("signal")] == [signal.SIGTERM]
    stopped, queued = place.trials()[2:]
    assert stopped.state == TrialState.FAIL and stopped.user_attrs["reason"] == "stopped"
    assert queued.state == TrialState.WAITING and queued.user_attrs["retries"] == 0
    place.write()
    place.search(3)
    assert place.trials()[3].params == stopped.params and len(place.trials()) == 4


def test_trial_that_kills_drivers_is_not_repeated_for_ever(place: Place) -> None:
    place.search(1)
    study = place.study()
    study.enqueue_trial({"unlearn.unlearning_rate": 0.01})
    for death in range(1, 4):
        trial = study.ask()
        trial.suggest_float("unlearn.unlearning_rate", 1e-4, 0.1, log=True)
        search_study.mark_own(trial)
        dead = trial.user_attrs["driver"] | {"started": 1}
        trial.set_user_attr("driver", dead)
        search_study.recover(study)
        assert len(place.trials(TrialState.FAIL)) == death
    assert not place.trials(TrialState.WAITING)


def test_driver_elsewhere_is_dead_after_silence(place: Place) -> None:
    place.search(1)
    study = place.study()
    for silence in (300, 900):
        trial = study.ask()
        trial.set_user_attr("driver", {"place": "another", "pid": os.getpid(), "started": 1})
        trial.set_user_attr("alive", time.time() - silence)
    search_study.recover(study)
    assert [t.state for t in place.trials()[1:]] == [TrialState.RUNNING, TrialState.FAIL]


# -- sharing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["sqlite:///runs/search/s.db", "journal:runs/s.journal"])
def test_two_drivers_on_one_study(place: Place, storage: str) -> None:
    place.write(servers=2)
    drivers = [place.start(12, "--seed", 7, "--storage", storage) for _ in range(2)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=LIMIT)
        assert driver.returncode == 0, out
    trials = place.study(url=storage).trials
    assert len(trials) == 12 and all(t.state in COUNTED for t in trials)
    assert len({t.params["unlearn.unlearning_rate"] for t in trials}) == 12
    requests = place.log("id")
    assert len({line["id"] for line in requests}) == len(requests) == 12
    assert len({line["pid"] for line in requests}) == 2


@pytest.mark.usefixtures("place")
def test_starting_is_for_one_driver_at_a_time() -> None:
    entered = threading.Event()

    def enter() -> None:
        with search_storage.one_driver_at_a_time("journal:runs/j"):
            entered.set()

    other = threading.Thread(target=enter)
    with search_storage.one_driver_at_a_time("journal:runs/j"):
        other.start()
        assert not entered.wait(0.2)
    assert entered.wait(LIMIT)
    other.join()


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("config: base.yaml\n", "", "s.yaml: config is needed"),
        ("base.yaml", "none.yaml", "none.yaml: No such file or directory"),
        ("last: 5", "last: 0", "s.yaml: last: a count from 1 is needed, not 0"),
        ("last:", "lats:", "s.yaml: lats: unknown key"),
        ("last: 5", "last: 5\nlast: 6", "s.yaml:7: last is given twice"),
        ("last: 5", "last: [5", "s.yaml:7: "),
        ("low: 1e-4", "low: 0", "s.yaml: parameters.unlearn.unlearning_rate.low: a logarithmic"),
        ("low: 1e-4", "low: 1", "s.yaml: parameters.unlearn.unlearning_rate: low 1 is not below"),
        ("low: 1e-4", "low: x", "s.yaml: parameters.unlearn.unlearning_rate.low: a number"),
        ("low: 1e-4,", "", "s.yaml: parameters.unlearn.unlearning_rate.low: a number"),
        ("log: true", "lag: true", "s.yaml: parameters.unlearn.unlearning_rate.lag: unknown"),
        ("low: 6", "low: 6.5", "s.yaml: parameters.unlearn.fork_every_n_loops: low and high of an"),
        ("last: 5", "direction: up", "s.yaml: direction: maximize or minimize, not up"),
        ("last: 5", "pruning: {a: {under: 1}}", "s.yaml: pruning.a: write {below"),
        ("last: 5", "pruning: {a: {below: 1}}", "s.yaml: pruning.a: not evaluated; there are"),
        ("last: 5", "objective: skore", "objective: a result has no skore"),
        ("last: 5", "variants: {v: {override: {}}}", "s.yaml: variants.v.override: only overrides"),
        (
            "last: 5",
            "variants: {v: {parameters: {a: null}}}",
            "s.yaml: variants.v.parameters.a: no",
        ),
        (
            "last: 5",
            "variants: {v: {overrides: {unlearn.unlearning_rate: 1}}}",
            "s.yaml: variants.v: unlearn.unlearning_rate is both searched and fixed",
        ),
        (
            "data.forget: other.h5",
            "unlearn.unlearning_rate: 1",
            "unlearn.unlearning_rate is both searched and fixed",
        ),
        (
            "last: 5",
            "variants: {v: {overrides: {data.retain: a.h5}}}",
            "s.yaml: variant v: data.retain cannot change between trials",
        ),
    ],
)
def test_bad_search_file(
    place: Place, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    assert old in SEARCH
    place.write(SEARCH.replace(old, new, 1))
    place.search(2, status=2)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("search.py: ") and words in err[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--variant", "tar"], "--variant tar: s.yaml has s"),
        (["--storage", "nowhere"], "--storage nowhere: neither journal:PATH nor"),
        (["--storage", "sqlite:////proc/none/s.db"], "--storage sqlite:////proc/none/s.db: "),
        (["--server", "./none"], "--server: ./none: No such file or directory"),
    ],
)
def test_bad_argument(
    place: Place, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    place.search(2, *more, status=2)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and words in err[0]


def test_config_that_the_program_refuses(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(fail=2)
    place.search(2, status=2)
    assert "mudman-mpi: unlearn.adv_lr: wrong" in capsys.readouterr().err
    place.write(fail=1)
    place.search(2, status=1)
    assert len(place.log("start")) == 1 + 3


def test_study_of_other_settings(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.search(1)
    place.write(SEARCH.replace("high: 42", "high: 64"))
    place.search(2, status=2)
    assert "s.yaml: parameters: differs from when the study s began" in capsys.readouterr().err
    place.write()
    (place.folder / "base.yaml").write_text(BASE.replace("passes: 120", "passes: 240", 1))
    place.search(2, status=2)
    assert "s.yaml: config: differs" in capsys.readouterr().err
    (place.folder / "base.yaml").write_text(BASE + "output: {dir: elsewhere}\n")
    place.search(2)


# -- what a study stands on -------------------------------------------------------------------

IDENTITY = {"program": "1", "config": "c", "weights": "w1", "data.forget": "f1"}
READY = {"identity": IDENTITY, "settings": {"data.batch_size": "8", "seed": "42"}}


def ready_with(kind: str, **changes: str) -> dict:
    return READY | {kind: READY[kind] | {key.replace("__", "."): v for key, v in changes.items()}}


@pytest.mark.parametrize(
    ("ready", "words"),
    [
        (ready_with("identity", data__forget="f2"), "data.forget: was f1 when the study s began"),
        (ready_with("identity", weights="w2"), "weights: was w1"),
        (ready_with("identity", data__forget_evaluation="e"), "data.forget_evaluation: was None"),
        (ready_with("settings", data__batch_size="4"), "data.batch_size: was 8"),
    ],
)
def test_study_of_other_inputs(
    place: Place, capsys: pytest.CaptureFixture[str], ready: dict, words: str
) -> None:
    """A file that was changed since, or a key that the search file does not hold."""
    place.write(ready=READY)
    place.search(1)
    before = place.trials()
    place.write(ready=ready)
    place.search(2, status=2)
    err = capsys.readouterr().err
    assert words in err and "choose another --study" in err
    assert place.trials() == before
    place.write(ready=READY)
    place.search(2)


def test_study_of_moved_inputs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The same content at another path goes on, and so does another version, with a warning."""
    place.write(ready=READY)
    place.search(1)
    moved = SEARCH.replace("other.h5", "moved.h5")
    new = ready_with("identity", program="2")
    new["settings"] = new["settings"] | {"data.new_key": "0"}
    place.write(moved, ready=new)
    place.search(2)
    assert "began with version 1 of the program, and goes on with 2" in capsys.readouterr().err
    assert len(place.trials(*COUNTED)) == 2


def test_study_without_identity(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an older version: one warning, and from then on it has one."""
    place.search(1)
    place.write(ready=READY)
    place.search(2)
    err = capsys.readouterr().err
    assert err.count("began without hashes of its inputs") == 1
    place.write(ready=ready_with("identity", weights="w2"))
    place.search(3, status=2)
