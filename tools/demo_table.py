#!/usr/bin/env python3
"""Print one table of several run folders: losses before, after unlearning and after relearning.

    demo_table.py RUN_DIR [RUN_DIR ...]

The figures are those of the last line of each run's metrics.jsonl, which the runs wrote.
"""

import json
import math
import sys
from pathlib import Path

ACCURACY = "accuracy_"


def read_run(folder: Path) -> dict:
    """The result line of a run, and its last multiple-choice accuracy."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = lines[-1]
    if result.get("phase") != "result":
        sys.exit(f"{folder}/metrics.jsonl: the run did not end")
    for line in lines:
        if line["phase"] == "eval":
            result["accuracy"] = next((v for k, v in line.items() if k.startswith(ACCURACY)), None)
    return result


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "-"


def is_above(run: dict) -> bool:
    """Whether the attack only raised the forget loss."""
    score, before = run["score"], run["forget_loss_unlearn"]
    before = run["forget_loss_start"] if before is None else before
    return score is not None and before is not None and score > before


def row(name: str, run: dict) -> list[str]:
    return [
        name,
        number(run["forget_loss_start"]),
        number(run["forget_loss_unlearn"]),
        number(run["score"]) + "*" * is_above(run),
        number(run["retain_loss_start"]),
        number(run["retain_loss_unlearn"]),
        number(run["retain_loss_relearn"]),
        number(run.get("accuracy"), 2),
        number(run["seconds"], 1) + " s",
    ]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs = {Path(folder).name: read_run(Path(folder)) for folder in sys.argv[1:]}
    head = ["", "forget loss", "unlearned", "relearned", "retain loss", "unlearned", "relearned",
            "questions", "time"]
    table = [head] + [row(name, run) for name, run in runs.items()]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    for line in table:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                        for i, (cell, w) in enumerate(zip(line, widths))))
    print("\nForget loss: on facts that the attack never saw; higher means better forgotten; relearned: the")
    print("lowest during the attack. Retain loss relearned: at its end; the attack itself does harm.")
    print("Questions: share answered right on those facts after relearning; 0.25 is chance.")
    if any(map(is_above, runs.values())):
        print("*: above the loss before the attack, which says little of another attack.")
    for name, run in runs.items():
        if run["status"] == "rejected":
            print(f"{name} was rejected: {run['reason']}")


if __name__ == "__main__":
    main()
