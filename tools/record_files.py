"""The formats of files that hold text: known by their names, and held against what they hold.

A suffix, in any case, decides: JSON lines and plain text, which .gz or .zst may follow, and parquet.
What a file holds is looked at too: UTF-16, and compressed or binary files under another name, are
errors that say what it is.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from text_records import InputError

JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md")
PARQUET = ".parquet"
COMPRESSED = (".gz", ".zst")
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"
MAGIC = {
    b"\xff\xfe\x00\x00": "UTF-32: convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\x1f\x8b": "compressed with gzip: end its name in .gz, or unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: end its name in .zst, or unpack it",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it",
    b"\x04\x22\x4d\x18": "compressed with lz4: unpack it",
    b"PK\x03\x04": "a zip file: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z file: unpack it",
    b"PAR1": "a parquet file: end its name in .parquet",
    b"ARROW1": "an Arrow file: write it as parquet or JSON lines",
    b"\xff\xff\xff\xff": "an Arrow stream: write it as parquet or JSON lines",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF file",
}
OTHER_COMPRESSION = (".bz2", ".xz", ".lz4", ".zip", ".7z", ".br", ".lzma", ".z", ".tgz", ".tar")


def with_compressed(suffixes: Sequence[str]) -> tuple[str, ...]:
    """The suffixes, and each with one of compression behind it."""
    return (*suffixes, *(suffix + packed for suffix in suffixes for packed in COMPRESSED))


RECORD_SUFFIXES = (*with_compressed(JSON_SUFFIXES), PARQUET)
ALL_SUFFIXES = (*RECORD_SUFFIXES, *with_compressed(TEXT_SUFFIXES))


def ends_in(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file's name ends so, in any case."""
    return path.name.lower().endswith(tuple(suffixes))


def unknown_format(path: Path, suffixes: Sequence[str]) -> InputError:
    """What to raise for a named file of none of these formats."""
    if path.suffix.lower() in OTHER_COMPRESSION:
        return InputError(f"{path}: compressed or packed in a way that is not read: unpack it")
    named = f"'{path.suffix}'" if path.suffix else "a name without suffix"
    plain = [suffix for suffix in suffixes if not suffix.endswith(COMPRESSED)]
    packed = " (.gz or .zst may follow)" if len(plain) < len(suffixes) else ""
    return InputError(
        f"{path}: {named} says no format that is read: the name must end in "
        f"{' '.join(plain)}{packed}"
    )


# -- bytes --------------------------------------------------------------------------------------


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a text, unpacked and without a byte-order mark, checked to be text."""
    first = True
    for chunk in _unpacked(path):
        if first and chunk:
            _check_text(path, chunk)
            chunk, first = chunk.removeprefix(BOM), False
        yield chunk


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text, without their ends."""
    rest = b""
    for chunk in read_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _check_text(path: Path, chunk: bytes) -> None:
    for magic, words in MAGIC.items():
        if chunk.startswith(magic):
            raise InputError(f"{path}: not plain UTF-8 text but {words}")
    if b"\0" in chunk:
        raise InputError(
            f"{path}: holds NUL bytes: UTF-16 or a binary file, not UTF-8 text "
            "(iconv -f UTF-16 -t UTF-8 converts UTF-16)"
        )


def _unpacked(path: Path) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        if suffix == ".zst":
            yield from _unpack_zstd(path, file)
        elif suffix == ".gz":
            yield from _unpack_gzip(path, file)
        else:
            yield from iter(lambda: file.read(CHUNK), b"")


def _unpack_gzip(path: Path, file: Any) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from iter(lambda: unpacked.read(CHUNK), b"")
    except EOFError:
        raise InputError(f"{path}: ends in the middle of its gzip data") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not gzip data that can be read: {error}") from None


def _unpack_zstd(path: Path, file: Any) -> Iterator[bytes]:
    """Frame by frame: the library's own stream takes a file that was cut short for a whole one."""
    zstandard = _package(path, "zstandard")
    frame = None
    try:
        while chunk := file.read(CHUNK):
            while chunk:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: not zstd data that can be read: {error}") from None
    if frame is not None and not frame.eof:
        raise InputError(f"{path}: ends in the middle of its zstd data")


def _package(path: Path, name: str) -> Any:
    """A package that only some formats need."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(
            f"{path}: reading this format needs the Python package {package}: pip install {package}"
        ) from None


# -- parquet ------------------------------------------------------------------------------------


def read_parquet(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file: row, record) of the columns that the fields lie in."""
    parquet = _package(path, "pyarrow.parquet")
    errors = (_package(path, "pyarrow").ArrowException, OSError, ValueError)
    file = _parquet_call(path, errors, lambda: parquet.ParquetFile(path))
    with file:
        names = file.schema_arrow.names
        tops = {part for field in fields for part in (field, field.partition(".")[0])}
        for field in fields:
            if field not in names and field.partition(".")[0] not in names:
                raise InputError(f"{path}: no field '{field}' (there are: {', '.join(names)})")
        columns = [name for name in names if name in tops]
        if len(set(columns)) < len(columns):
            raise InputError(f"{path}: has two columns named '{max(columns, key=columns.count)}'")
        batches, row = file.iter_batches(columns=columns), 0
        while batch := _parquet_call(path, errors, lambda: next(batches, None)):
            for record in batch.to_pylist():
                row += 1
                yield f"{path}: row {row}", record


def _parquet_call(path: Path, errors: tuple, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except errors as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a parquet file that can be read: {reason}") from None
