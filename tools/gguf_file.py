"""A GGUF file: its settings, and its tensors in float32.

The format is llama.cpp's (docs/gguf.md of its library ggml): a head of settings, the list of
tensors, and their data. It is read here with every length checked against the file's, so that
damage ends in a message; the package `gguf` undoes every quantization that it knows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from text_records import InputError

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Numbers by their type in the file.
NUMBERS = {
    number: np.dtype(name) for number, name in enumerate("<u1 <i1 <u2 <i2 <u4 <i4 <f4 ?".split())
} | {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}
DIMENSIONS_MAX = 4


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its shape, rows first, and its data as bytes, on disk."""

    shape: tuple[int, ...]
    kind: Any  # a gguf.GGMLQuantizationType
    data: np.ndarray


@dataclass(frozen=True)
class GgufFile:
    """What a file holds."""

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def fault(self, words: str) -> InputError:
        """What to raise for something in this file."""
        return InputError(f"{self.path}: {words}")

    def setting(self, name: str, kind: type, default: Any = None) -> Any:
        """A setting of this type; without a default it must be there."""
        value = self.settings.get(name, default)
        if value is None:
            raise self.fault(f"the setting {name} is missing")
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
            raise self.fault(f"the setting {name} is {shown(value)}, not of type {kind.__name__}")
        return value

    def entries(self, name: str, kind: type, default: Any = None) -> list[Any]:
        """A setting that is a list of this type."""
        values = self.setting(name, list, default)
        if not all(isinstance(value, kind) for value in values):
            raise self.fault(f"the setting {name} is not a list of type {kind.__name__}")
        return values

    def values(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        import gguf

        tensor = self.tensors[name]
        try:
            values = gguf.dequantize(tensor.data, tensor.kind)
        except NotImplementedError:
            raise self.fault(
                f"tensor {name}: the package gguf cannot undo its quantization {tensor.kind.name}"
            ) from None
        if not np.isfinite(values).all():
            raise self.fault(f"tensor {name} holds values that are not finite")
        return values.astype(np.float32, copy=False).reshape(tensor.shape)


def open_gguf(path: Path) -> GgufFile:
    """Read the settings and the list of tensors."""
    with path.open("rb") as file:  # the system's own words where it is no file that can be read
        if file.read(4) != b"GGUF":
            raise InputError(f"{path}: not a GGUF file")
    try:
        return _read(path)
    except _Damage as error:
        raise InputError(f"{path}: {error}") from None


def shown(value: Any) -> str:
    """A value for a message: long ones are cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


class _Damage(Exception):
    """What is wrong with a file."""


class _Cursor:
    """A place in the file, from which one thing is read after the other."""

    def __init__(self, content: np.ndarray) -> None:
        self.content, self.at = content, 4

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.at:
            raise _Damage("damaged or cut short")
        self.at += size
        return self.content[self.at - size : self.at].tobytes()

    def numbers(self, letters: str) -> tuple[int, ...]:
        return struct.unpack(f"<{letters}", self.take(struct.calcsize(f"<{letters}")))

    def text(self) -> str:
        try:
            return self.take(*self.numbers("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _Damage("damaged: holds text that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, n = self.numbers("IQ")
            if kind in NUMBERS:
                return self.array(kind, n)
            if kind == STRING and n <= len(self.content) // 8:
                return [self.text() for _ in range(n)]
        elif kind in NUMBERS:
            return self.array(kind, 1)[0]
        raise _Damage(f"damaged, or holds a setting of type {kind}, which is not known")

    def array(self, kind: int, n: int) -> list[Any]:
        dtype = NUMBERS[kind]
        return np.frombuffer(self.take(n * dtype.itemsize), dtype).tolist()


def _read(path: Path) -> GgufFile:
    cursor = _Cursor(np.memmap(path, mode="r", dtype=np.uint8))
    version, tensors_n, settings_n = cursor.numbers("IQQ")
    if version not in VERSIONS:
        raise _Damage(f"GGUF version {version} is not supported: {VERSIONS[0]} and {VERSIONS[1]}")
    settings = {}
    for _ in range(settings_n):
        name = cursor.text()
        settings[name] = cursor.value(*cursor.numbers("I"))
    listed = [(cursor.text(), *_placed(cursor)) for _ in range(tensors_n)]
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damage(f"damaged: an alignment of {shown(alignment)}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {
        name: _tensor(cursor.content, name, shape, kind, start + offset)
        for name, shape, kind, offset in listed
    }
    if len(tensors) != tensors_n:
        raise _Damage("damaged: names a tensor twice")
    return GgufFile(path, settings, tensors)


def _placed(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    """Shape, type and offset of a tensor in the list."""
    (dimensions,) = cursor.numbers("I")
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise _Damage(f"damaged: a tensor of {dimensions} dimensions")
    shape = cursor.numbers(f"{dimensions}Q")[::-1]
    return (shape, *cursor.numbers("IQ"))


def _tensor(
    content: np.ndarray, name: str, shape: tuple[int, ...], kind: int, start: int
) -> Tensor:
    try:
        import gguf
    except ImportError:
        raise _Damage(
            "reading it needs the Python package gguf: tools/setup.sh tools installs it"
        ) from None
    try:
        known = gguf.GGMLQuantizationType(kind)
        size, block = gguf.GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise _Damage(
            f"tensor {name}: the package gguf does not know quantization {kind}"
        ) from None
    *rows, columns = shape
    if columns % size:
        raise _Damage(f"damaged: tensor {name} has rows of {columns}, blocks of {size}")
    bytes_n = columns // size * block
    for n in rows:
        bytes_n *= n
    if start + bytes_n > len(content):
        raise _Damage(f"damaged or cut short: tensor {name} ends beyond it")
    data = content[start : start + bytes_n].reshape(*rows, columns // size * block)
    return Tensor(shape, known, data)
