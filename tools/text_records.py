"""Records of text: their fields, and choosing among them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class InputError(Exception):
    """Bad input; the message is one line that names the place and is shown to the user as it is."""


@dataclass(frozen=True)
class Condition:
    """A record is wanted when its field equals the value, or with `wanted` false differs."""

    field: str
    value: str
    wanted: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `field=value` or `field!=value`."""
        found = re.fullmatch(r"([^=!]+)(!?=)(.*)", text, re.DOTALL)
        if found is None:
            raise InputError(f"--where {text}: write field=value or field!=value")
        return cls(field=found[1], value=found[3], wanted=found[2] == "=")

    def holds(self, record: dict[str, Any], place: str) -> bool:
        """Compare with a string as it is, with others as JSON writes them (true, 3, null)."""
        value = look_up(record, self.field, place)
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        return (shown == self.value) == self.wanted

    def __str__(self) -> str:
        return f"{self.field}{'=' if self.wanted else '!='}{self.value}"


@dataclass(frozen=True)
class TextFilter:
    """A text is wanted when every `match` is found in it and no `exclude` is."""

    match: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def compile(cls, match: Sequence[str], exclude: Sequence[str]) -> TextFilter:
        """Compile Python regular expressions."""
        return cls(
            tuple(_compile("--match", p) for p in match),
            tuple(_compile("--exclude", p) for p in exclude),
        )

    def holds(self, text: str) -> bool:
        """Tell whether the text is wanted."""
        return all(p.search(text) for p in self.match) and not any(
            p.search(text) for p in self.exclude
        )

    def __str__(self) -> str:
        words = [f"match={p.pattern}" for p in self.match] + [
            f"exclude={p.pattern}" for p in self.exclude
        ]
        return " ".join(words)


def _compile(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{option} {pattern}: not a regular expression: {error}") from error


def parse_json(text: str) -> Any:
    """Read JSON; ValueError, too, where an object has a name twice, of which Python takes the last."""
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"one object has a name twice: '{max(names, key=names.count)}'")
    return found


def look_up(record: dict[str, Any], field: str, place: str) -> Any:
    """Return a field of a record; dots reach into nested objects (`category.animal_abuse`)."""
    if field in record:
        return record[field]
    value: Any = record
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            raise InputError(
                f"{place}: no field '{field}' (there are: {', '.join(record) or 'none'})"
            )
        value = value[name]
    return value


def look_up_text(record: dict[str, Any], field: str, place: str) -> str:
    """Return a field that must be text."""
    value = look_up(record, field, place)
    if value is None:
        raise InputError(
            f"{place}: field '{field}' is not text but null: --where {field}!=null leaves out such "
            "records"
        )
    if not isinstance(value, str):
        raise InputError(f"{place}: field '{field}' is not text")
    return checked_text(value, place)


def checked_text(text: str, place: str) -> str:
    """Refuse text that UTF-8 cannot write: JSON escapes can name half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: not valid Unicode text: {error.reason}") from error
    return text
