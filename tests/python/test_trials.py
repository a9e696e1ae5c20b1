"""`mudman-mpi trials`: a trial in the resident server is the run that it stands for, to the bit."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identities import is_aside
from job_helpers import BINARY, LIMIT, environment, fail, metrics_of, result_of
from model_helpers import Case
from report_runs import read_config

LOSSES = ["forget_loss_unlearn", "retain_loss_unlearn", "forget_loss_relearn", "retain_loss_relearn"]


class Server:
    """A trial server and its pipes."""

    def __init__(self, *arguments: object, ranks: int = 1):
        before = ["mpirun", "-n", str(ranks), "--bind-to", "none"] if ranks > 1 else []
        self.process = subprocess.Popen(
            [*before, str(BINARY), "trials", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(1),
            start_new_session=True,
        )
        self._unread = b""

    def say(self, *messages: object) -> None:
        """Lines, of which the server has the last when it has the first."""
        lines = [one if isinstance(one, str) else json.dumps(one) for one in messages]
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next line."""
        end = time.monotonic() + LIMIT
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            assert ready, "the server says nothing"
            more = os.read(self.process.stdout.fileno(), 65536)
            assert more, self.process.stderr.read().decode()
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def result(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The next result and the evaluations before it."""
        lines = [self.hear()]
        while lines[-1]["event"] != "result":
            lines.append(self.hear())
        return lines[-1], lines[:-1]

    def trial(self, number: int, **overrides: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Run one; keys have __ for the dot."""
        keys = {key.replace("__", "."): value for key, value in overrides.items()}
        self.say({"id": number, "overrides": keys})
        return self.result()

    def end(self) -> int:
        self.process.stdin.close()
        return self.process.wait(LIMIT)


@pytest.fixture
def server(tiny: Case) -> Iterator[Server]:
    one = Server(tiny.config, "output.dir=unused")
    yield one
    one.process.kill()
    one.process.wait()


def test_ready(server: Server, finished: Path) -> None:
    ready, start = server.hear(), metrics_of(finished)[0]
    assert (ready["event"], ready["ranks"]) == ("ready", 1)
    for key in ("forget_loss", "retain_loss"):
        assert ready[key] == start[key]
    assert ready["identity"] == result_of(finished)["identity"]
    assert ready["settings"]["data.batch_size"] == "4" and ready["settings"]["seed"] == "42"
    assert "checkpoint.keep" not in ready["settings"]
    config = read_config(finished / "config.yaml", [])
    assert set(config) - set(ready["settings"]) == set(filter(is_aside, config)), "as tools have it"
    assert server.end() == 0
    assert not Path("unused").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_trials_are_runs(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """Scores, losses and curves of runs; and nothing of one trial reaches the next."""
    server = Server(tiny.config, "output.dir=unused", ranks=ranks)
    server.hear()
    settings = [
        {},
        {"unlearn.unlearning_rate": 0.02, "unlearn.graph": "fresh", "unlearn.loops": 3},
        {"unlearn.train_adversary": False, "evaluate.batches": 2},
        {"unlearn.target_modules": ["up_proj", "v_proj"], "relearn.lr": 0.01},
        {"unlearn.loops": 0},
        {"unlearn.adv_lora_rank": 2, "unlearn.adv_lora_count": 2, "unlearn.fork_every_n_loops": 7},
        {"unlearn.lora_rank": 3, "unlearn.train_adversary": False},
        {},
    ]
    for i, overrides in enumerate(settings):
        arguments = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        tiny.run(tmp_path / str(i), *arguments, ranks=ranks)
        server.say({"id": i, "overrides": overrides})
        result, evaluations = server.result()
        want = result_of(tmp_path / str(i))
        assert (result["id"], result["status"], result["reason"]) == (i, "done", "")
        for key in ["score", *LOSSES, "attack_of_score", "evaluation", "identity"]:
            assert result[key] == want[key], (i, key)
        curve = [line for line in metrics_of(tmp_path / str(i)) if line["phase"] == "eval"]
        for told, line in zip(evaluations, [e for e in curve if e["at"] != "start"], strict=True):
            for key in ("at", "passes", "forget_loss", "retain_loss"):
                assert told[key] == line[key], (i, key)
    assert server.end() == 0


def test_attacks(tiny: Case, tmp_path: Path) -> None:
    """Each evaluation names its attack and the result holds the score of each, as in a run; a
    trial that does not come to them has no scores of the one before."""
    attacks = "[{name: sgd}, {name: adamw, optimizer: adamw, lr: 0.001, passes: 8}]"
    arguments = [f"relearn.attacks={attacks}", "evaluate.every_passes=4"]
    tiny.run(tmp_path / "run", *arguments)
    server = Server(tiny.config, "output.dir=unused", *arguments)
    server.hear()
    result, evaluations = server.trial(1)
    want = result_of(tmp_path / "run")
    for key in ("score", "score_sgd", "score_adamw"):
        assert result[key] == want[key] is not None
    curve = [line for line in metrics_of(tmp_path / "run") if line.get("at") == "relearn"]
    told = [line for line in evaluations if line["at"] == "relearn"]
    assert [line["attack"] for line in told] == [line["attack"] for line in curve]
    assert {line["attack"] for line in told} == {"sgd", "adamw"}
    result, _ = server.trial(2, unlearn__unlearning_rate=50.0, unlearn__retain_loss_budget=0.01)
    assert result["status"] == "rejected"
    assert result["score_sgd"] is None and result["score_adamw"] is None
    assert server.end() == 0


def test_rejected_trial_leaves_nothing_behind(server: Server, finished: Path) -> None:
    server.hear()
    result, _ = server.trial(1, unlearn__unlearning_rate=50.0, unlearn__retain_loss_budget=0.01)
    assert result["status"] == "rejected" and "retain loss" in result["reason"]
    assert result["score"] is None and result["forget_loss_relearn"] is None
    server.trial(2, relearn__lr=1e9)  # wrecks every weight
    result, _ = server.trial(3)
    assert result["score"] == result_of(finished)["score"]


def test_prune(server: Server, finished: Path) -> None:
    """At the next evaluation; a late one is nobody's."""
    server.hear()
    server.say({"id": 1, "overrides": {"evaluate.every_passes": 5}}, {"prune": True})
    result, evaluations = server.result()
    assert (result["id"], result["status"]) == (1, "pruned")
    assert 1 <= len(evaluations) < 8
    server.say({"prune": True})
    result, _ = server.trial(2)
    assert (result["id"], result["status"]) == (2, "done")
    assert result["score"] == result_of(finished)["score"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"id": 7, "overrides": [1]}', "overrides is not an object"),
        ('{"id": 7, "overrides": {"data.batch_size": 2}}', "data.batch_size"),
        ('{"id": 7, "overrides": {"unlearn.adv_lr": "much"}}', "unlearn.adv_lr"),
        ('{"id": 7, "overrides": {"unlearn.adversary_lr": 1}}', "unlearn.adv_lr"),
        ('{"id": 7, "overrides": {"unlearn.passes": 7}}', "multiple"),
        ('{"id": 7, "overrides": {"relearn.passes": 7}}', "multiple"),
        ('{"id": 7, "overrides": {"unlearn.target_modules": ["no_proj"]}}', "no_proj"),
    ],
)
def test_bad_line(server: Server, finished: Path, line: str, words: str) -> None:
    """An answer that names what is wrong; the server goes on."""
    server.hear()
    server.say(line)
    result, _ = server.result()
    assert result["status"] == "error" and words in result["reason"], result
    assert result.get("id") == (7 if '"id"' in line else None)
    result, _ = server.trial(8)
    assert result["score"] == result_of(finished)["score"]


@pytest.mark.parametrize("busy", [False, True])
def test_signal(server: Server, busy: bool) -> None:
    server.hear()
    if busy:
        server.say({"id": 1, "overrides": {"unlearn.loops": 100000, "evaluate.every_passes": 5}})
        server.hear()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(LIMIT) == 3


def test_bad_config(tiny: Case) -> None:
    assert "unlearn.adv_lr" in fail(2, "trials", tiny.config, "unlearn.adv_lr=-1")
