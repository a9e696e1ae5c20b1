"""Writing token files and multiple-choice files (HDF5), the same bytes for the same content.

A token file holds `/tokens`, unsigned 32-bit, [examples, context]; where rows are padded `/lengths`
[examples], how many of a row's tokens are its own; where they begin with a prompt `/answer_from`
[examples], the first token that is to be learnt. A multiple-choice file holds
`/prompts`, all prompts' tokens one after the other, `/offsets` [n + 1], where each begins and the
last ends, `/choices` [n, 4], the answer tokens, and `/answers` [n], which of the four is right.
Both carry the attributes `vocab_size`, `tokenizer` and `source`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

CHOICES = 4


@dataclass(frozen=True)
class Origin:
    """What a file's attributes say about where its tokens come from."""

    vocab_size: int
    tokenizer: str
    source: str


@dataclass(frozen=True)
class Question:
    """A multiple-choice question in tokens."""

    prompt: Sequence[int]
    choices: Sequence[int]
    answer: int


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens [examples, context]; lengths and answers [examples], None: rows are whole and
    learnt from their beginning."""

    tokens: np.ndarray
    lengths: np.ndarray | None = None
    answers: np.ndarray | None = None

    def texts(self, context: int) -> list[bytes]:
        """The tokens of each row within a context, without padding: rows that read alike are alike."""
        lengths = [len(row) for row in self.tokens] if self.lengths is None else self.lengths
        pairs = zip(self.tokens, lengths, strict=True)
        return [row[: min(length, context)].tobytes() for row, length in pairs]

    def chosen(self, order: np.ndarray) -> TokenRows:
        """The rows of these numbers, or of a mask."""
        return TokenRows(
            self.tokens[order],
            None if self.lengths is None else self.lengths[order],
            None if self.answers is None else self.answers[order],
        )


def read_token_rows(file: h5py.File) -> TokenRows:
    """The rows of a token file; KeyError where it is none."""
    lengths, answers = (file[n][:] if n in file else None for n in ("lengths", "answer_from"))
    return TokenRows(file["tokens"][:], lengths, answers)


def join_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """All rows, one part behind the other."""
    tokens = np.concatenate([part.tokens for part in parts])
    whole = [np.full(len(part.tokens), part.tokens.shape[1], np.uint32) for part in parts]
    zero = [np.zeros(len(part.tokens), np.uint32) for part in parts]
    return TokenRows(
        tokens,
        _joined([part.lengths for part in parts], whole),
        _joined([part.answers for part in parts], zero),
    )


def _joined(given: Sequence[np.ndarray | None], default: Sequence[np.ndarray]) -> np.ndarray | None:
    if all(part is None for part in given):
        return None
    pairs = zip(given, default, strict=True)
    return np.concatenate([other if part is None else part for part, other in pairs])


def write_token_file(path: Path, rows: np.ndarray | TokenRows, origin: Origin) -> None:
    """Write a token file of rows, or of whole rows of tokens [examples, context]."""
    rows = rows if isinstance(rows, TokenRows) else TokenRows(rows)
    tokens = rows.tokens
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must be [examples, context], not {tokens.shape}")
    _check_ids(tokens, origin.vocab_size)
    datasets = {"tokens": tokens, "lengths": rows.lengths, "answer_from": rows.answers}
    _write(path, {n: d.astype("<u4") for n, d in datasets.items() if d is not None}, origin)


def write_multiple_choice_file(path: Path, questions: Sequence[Question], origin: Origin) -> None:
    """Write a multiple-choice file, the questions in the order given."""
    lengths = [len(question.prompt) for question in questions]
    prompts = np.concatenate([np.asarray(question.prompt, dtype="<u4") for question in questions])
    choices = np.asarray([question.choices for question in questions], dtype="<u4")
    answers = np.asarray([question.answer for question in questions], dtype="<u4")
    if choices.shape != (len(questions), CHOICES) or 0 in lengths or answers.max() >= CHOICES:
        raise ValueError("each question needs a prompt, four choices and an answer among them")
    _check_ids(prompts, origin.vocab_size)
    _check_ids(choices, origin.vocab_size)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
    _write(
        path,
        {"prompts": prompts, "offsets": offsets, "choices": choices, "answers": answers},
        origin,
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file so that it is never there by half."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        _put_in_place(temporary, path)
    except OSError as error:  # of a write: it knows no name
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.max() >= vocab_size:
        raise ValueError(f"token id {ids.max()} is outside the vocabulary of {vocab_size}")


def _write(path: Path, datasets: Mapping[str, np.ndarray], origin: Origin) -> None:
    temporary = _temporary(path)
    try:
        # Best effort: shared file systems often have no locks.
        with h5py.File(temporary, "w", locking="best-effort") as file:
            for name, data in datasets.items():
                # Without times in the file, the same content is the same bytes.
                file.create_dataset(name, data=data, track_times=False)
            file.attrs["vocab_size"] = np.uint32(origin.vocab_size)
            file.attrs["tokenizer"] = origin.tokenizer
            file.attrs["source"] = origin.source
        _put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _put_in_place(temporary: Path, path: Path) -> None:
    """Make the content durable before its name: a reader sees the old file or the whole new one."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
