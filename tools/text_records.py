"""Reading records of text from JSON lines, plain text files and folders; choosing among them.

Everything comes out in an order that depends on the input alone: files in the order given,
folders walked in sorted order, records in file order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md")
TEXT_UNITS = ("paragraph", "line", "file")


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
        shown = value if isinstance(value, str) else json.dumps(value)
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


def find_files(inputs: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """List the files given, and, sorted, those in the folders given with one of the suffixes."""
    files: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = _walk(given, tuple(suffixes))
            if not found:
                raise InputError(f"{given}: no file in this folder ends in {' '.join(suffixes)}")
            files += found
        elif given.is_file():
            files.append(given)
        else:
            raise InputError(f"{given}: no such file or folder")
    return files


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder):
        # os.walk descends in the order of this very list.
        folders.sort()
        files += [Path(root, name) for name in sorted(names) if name.endswith(suffixes)]
    return [path for path in files if path.is_file()]


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, object) for every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _parse_json_line(line, place)


def _parse_json_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise InputError(f"{place}: not JSON that can be read: nested too deeply") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: a JSON object is expected on each line")
    return record


def read_json_texts(
    path: Path, field: str, conditions: Sequence[Condition]
) -> Iterator[str | None]:
    """Yield the text of every record, or None for a record that a condition leaves out."""
    for place, record in read_json_lines(path):
        wanted = all(condition.holds(record, place) for condition in conditions)
        yield look_up_text(record, field, place) if wanted else None


def read_plain_texts(path: Path, unit: str) -> Iterator[str]:
    """Yield the paragraphs (blank lines separate), the lines or the whole of a text file."""
    text = _read_utf8(path)
    if unit == "paragraph":
        parts = re.split(r"\n(?:[ \t]*\n)+", text)
    elif unit == "line":
        parts = text.split("\n")
    else:
        parts = [text]
    for part in parts:
        if part.strip():
            yield part.strip("\n")


def _read_utf8(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}") from error
    return text.replace("\r\n", "\n")
