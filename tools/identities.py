"""What results stand on: the hashes that the program writes as "identity", and where two differ.

A key is "program" (its version), "config" and "evaluation" (hashes of several settings), or an input:
"config.json", "weights", "data.forget", "evaluate.multiple_choice.NAME".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUMMARIES = ("program", "config", "evaluation")


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


def without_paths(value: Any) -> Any:
    """Settings without the places of inputs, whose content is compared instead."""
    if isinstance(value, Mapping):
        return {
            key: without_paths(item)
            for key, item in value.items()
            if key not in ("file", "model.path") and not str(key).startswith("data.")
        }
    return [without_paths(item) for item in value] if isinstance(value, list) else value
