"""Stands in for `mudman-mpi trials CONFIG`: its protocol, with scores by a formula.

    fake_trial_server.py SETTINGS trials CONFIG [key=value ...]

SETTINGS is a JSON file: `log`, where each start, request and signal adds a line; `die`, a trial's
id to how often it ends with the server's death; `hang`, the ids of trials that take a minute;
`expect_prune_below`, an accuracy at which it waits to be asked; `servers`, how many there must be
before a trial starts; `fail`, an exit status instead of a start; `ready`, more of the ready line.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from pathlib import Path

SETTINGS = json.loads(Path(sys.argv[1]).read_text())
LOG = Path(SETTINGS["log"])
OVERRIDES = ("unlearn.", "relearn.", "evaluate.")
BUDGET = 0.05


def note(**fields: object) -> None:
    with LOG.open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def stop(number: int, _: object) -> None:
    note(signal=number)
    os._exit(3)


def read_line(seconds: float | None) -> dict | None:
    """The next line, None if none comes in time; the end of input ends the server."""
    if seconds is not None and not select.select([sys.stdin.buffer], [], [], seconds)[0]:
        return None
    line = sys.stdin.buffer.raw.readline()
    if not line:
        note(end="input")
        sys.exit(0)
    return json.loads(line)


def score_of(overrides: dict) -> float:
    """Highest, 1, at unlearning_rate 0.001 and fork 12."""
    rate, fork = overrides["unlearn.unlearning_rate"], overrides["unlearn.fork_every_n_loops"]
    return 1 - (math.log10(rate) + 3) ** 2 / 4 - ((fork - 12) / 40) ** 2


def run_trial(name: object, overrides: dict) -> dict:
    """The result; evaluations on the way."""
    for key in overrides:
        if not key.startswith(OVERRIDES):
            return {"status": "error", "reason": f"{key} cannot change between trials"}
    if overrides.get("unlearn.loops") == 0:
        return {"status": "done", "reason": "", "score": 0.25}
    score, rate = score_of(overrides), overrides["unlearn.unlearning_rate"]
    if name in SETTINGS.get("hang", ()):
        read_line(60)
    for at, passes in (("unlearn", 60), ("unlearn", 120), ("relearn", 60), ("relearn", 120)):
        if passes == 120 and at == "unlearn" and die(name):
            os.kill(os.getpid(), signal.SIGKILL)
        retain = 0.3 + rate
        say(
            event="eval",
            id=name,
            at=at,
            passes=passes,
            forget_loss=score + 1 / passes,
            retain_loss=retain,
            accuracy_mmlu=0.3 - rate,
        )
        if retain > 0.3 + BUDGET:
            return {"status": "rejected", "reason": f"retain loss {retain:.4f}"}
        expected = 0.3 - rate < SETTINGS.get("expect_prune_below", 0)
        if read_line(5 if expected else 0) == {"prune": True}:
            return {"status": "pruned", "reason": "asked to"}
    return {"status": "done", "reason": "", "score": score, "retain_loss_unlearn": retain}


def die(name: object) -> bool:
    """Whether this try of a trial is one of those that kill the server."""
    tries = sum(json.loads(line).get("id") == name for line in LOG.read_text().splitlines())
    return tries <= SETTINGS.get("die", {}).get(name, 0)


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    note(start=sys.argv[2:])
    if "fail" in SETTINGS:
        print("mudman-mpi: unlearn.adv_lr: wrong", file=sys.stderr)
        sys.exit(SETTINGS["fail"])
    figures = {"forget_loss": 0.2, "retain_loss": 0.3, "accuracy_mmlu": 0.31}
    say(event="ready", ranks=1, **figures, **SETTINGS.get("ready", {}))
    while LOG.read_text().count('"start"') < SETTINGS.get("servers", 1):
        time.sleep(0.01)
    while True:
        request = read_line(None)
        if "prune" in request:
            say(event="result", status="error", reason="no trial runs")
            continue
        note(id=request["id"], overrides=request["overrides"])
        began = time.monotonic()
        result = run_trial(request["id"], request["overrides"])
        say(event="result", id=request["id"], seconds=time.monotonic() - began, **result)


if __name__ == "__main__":
    main()
