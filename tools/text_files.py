"""Reading records of text from JSON lines, parquet, plain text files and folders.

Everything comes out in an order that depends on the input alone: files in the order given,
folders walked in sorted order, records in file order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from record_files import PARQUET, ends_in, read_chunks, read_lines, read_parquet, unknown_format
from text_records import Condition, InputError, look_up_text, parse_json

TEXT_UNITS = ("paragraph", "line", "file")


def find_files(inputs: Sequence[Path], suffixes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The files to read, and those of folders that are left out.

    Files given, which must end in one of the suffixes, and, sorted, those of the folders given that
    do.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found, others = _walk(given, suffixes)
            if not found:
                raise InputError(f"{given}: no file in this folder ends in {' '.join(suffixes)}")
            files += found
            left_out += others
        elif not given.is_file():
            raise InputError(f"{given}: no such file or folder")
        elif ends_in(given, suffixes):
            files.append(given)
        else:
            raise unknown_format(given, suffixes)
    return files, left_out


def _walk(folder: Path, suffixes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        # os.walk descends in the order of this very list.
        folders.sort()
        files += [path for name in sorted(names) if (path := Path(root, name)).is_file()]
    found = [path for path in files if ends_in(path, suffixes)]
    return found, [path for path in files if not ends_in(path, suffixes)]


def read_records(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for every record of JSON lines or parquet; of parquet these fields."""
    if ends_in(path, (PARQUET,)):
        return read_parquet(path, fields)
    return _read_json_lines(path)


def _read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) for every line that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _parse_json_line(line, place)


def _parse_json_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
    except RecursionError as error:
        raise InputError(f"{place}: not JSON that can be read: nested too deeply") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: a JSON object is expected on each line")
    return record


def read_field(path: Path, field: str, conditions: Sequence[Condition]) -> Iterator[str | None]:
    """Yield the text of every record, or None for a record that a condition leaves out."""
    for place, record in read_records(path, [field, *(c.field for c in conditions)]):
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
    content = b"".join(read_chunks(path))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}") from error
    return text.replace("\r\n", "\n")
