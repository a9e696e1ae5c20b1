"""Helpers of the tests of prepare_data.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np

import prepare_data

SPLITS = ("train", "validation", "test")
# More texts than are tokenised at a time, so that the pieces' seams are crossed.
RECORDS = 1501
QUESTIONS = [
    {
        "question": "  Which of these is the longest question?\n",
        "choices": ["w", "x", "y", "z"],
        "answer": 3,
        "of": "a_b",
    },
    {"question": "Short?", "choices": ["1", "2", "3", "4"], "answer": 0, "of": "c"},
    {"question": "Thé sea?", "choices": ["p", "q", "r", "s"], "answer": 2, "of": "c"},
]


def write_json_lines(path: Path, records: list[dict]) -> Path:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        encoding="utf-8",
    )
    return path


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def run(*arguments: object) -> int:
    return prepare_data.main([str(argument) for argument in arguments])


def read_rows(prefix: Path) -> dict[str, np.ndarray]:
    rows = {}
    for split in SPLITS:
        with h5py.File(f"{prefix}-{split}.h5") as file:
            rows[split] = file["tokens"][:]
    return rows


def expected_split(items: list) -> dict[str, list]:
    """The paper's split again: ceil(n/2) of default_rng(42)'s permutation are test, twice."""

    def train_and_test(some: list) -> tuple[list, list]:
        permuted = [some[i] for i in np.random.default_rng(42).permutation(len(some))]
        n_test = math.ceil(len(some) / 2)
        return permuted[n_test:], permuted[:n_test]

    train, rest = train_and_test(items)
    validation, test = train_and_test(rest)
    return {"train": train, "validation": validation, "test": test}


def expected_rows(texts: list[str], context: int) -> dict[str, np.ndarray]:
    """Bytes, cut, the short ones dropped."""
    rows = {}
    for split, some in expected_split(texts).items():
        encoded = [text.encode("utf-8") for text in some]
        rows[split] = np.array(
            [list(text[:context]) for text in encoded if len(text) >= context], dtype=np.uint32
        )
    return rows
