"""What results stand on: the hashes that the program writes as "identity", and where two differ.

A key is "program" (its version), "config" and "evaluation" (hashes of several settings), or an input:
"config.json", "weights", "data.forget", "evaluate.multiple_choice.NAME".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUMMARIES = ("program", "config", "evaluation")
TOKEN_FILES = tuple(
    f"{of}{use}" for of in ("retain", "forget") for use in ("", "_validation", "_evaluation")
)
# Settings that the hash "config" leaves out.
ASIDE = ("model.shard", "model.recompute", "device", "data.micro_batch", "transport", "timeout")
ASIDE_SECTIONS = ("checkpoint.", "output.", "pretrain.")


def inputs(identity: Any) -> dict[str, str]:
    """The hashes of the inputs alone; none of what an older version wrote."""
    if not isinstance(identity, Mapping):
        return {}
    return {key: str(value) for key, value in identity.items() if key not in SUMMARIES}


def difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> str | None:
    """The first input whose content differs, or which only one side has; None if there is none.
    Where a side has no input, nothing is compared."""
    keys = dict.fromkeys((*left, *right)) if left and right else ()
    return next((key for key in keys if left.get(key) != right.get(key)), None)


def changed_setting(left: Mapping[str, Any], right: Mapping[str, Any]) -> str | None:
    """The first key that both sides have with another value: a new version may have more keys."""
    return next((key for key in left if key in right and left[key] != right[key]), None)


def is_place(key: str) -> bool:
    """Whether a setting is where an input lies, whose content is compared instead."""
    section, _, name = key.rpartition(".")
    return name == "file" or key == "model.path" or (section == "data" and name in TOKEN_FILES)


def without_paths(value: Any) -> Any:
    """Settings without the places of inputs."""
    if isinstance(value, Mapping):
        return {k: without_paths(item) for k, item in value.items() if not is_place(str(k))}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


def is_aside(key: str) -> bool:
    """Whether a setting says only where, how fast or how safely a run goes."""
    return key in ASIDE or key.startswith(ASIDE_SECTIONS)
