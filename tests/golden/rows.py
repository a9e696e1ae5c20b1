"""Rows of different lengths with prompts that are not learnt, as transformers knows them: labels of -100.

A `Rows` stands where the oracle takes a batch of tokens. Its padding is random tokens: nothing may depend on them.
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NOT_LEARNT = -100


@dataclass(frozen=True)
class Rows:
    """[rows, T]: tokens; labels, each token itself or NOT_LEARNT; and which tokens are no padding."""

    tokens: Tensor
    labels: Tensor
    valid: Tensor

    def __getitem__(self, rows) -> "Rows":
        return Rows(self.tokens[rows], self.labels[rows], self.valid[rows])

    def __len__(self) -> int:
        return len(self.tokens)


def make(tokens: Tensor, lengths: np.ndarray, answers: np.ndarray) -> Rows:
    """Token t of a row is learnt where answers <= t < lengths."""
    at = torch.arange(tokens.shape[1])
    ends, begins = (torch.from_numpy(v.astype(np.int64))[:, None] for v in (lengths, answers))
    valid = at < ends
    return Rows(tokens, tokens.where(valid & (at >= begins), torch.tensor(NOT_LEARNT)), valid)


def random_shape(rng: np.random.Generator, rows: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and beginnings of answers: the shortest row has one target, the longest is whole and all learnt."""
    lengths = rng.integers(3, context + 1, rows, dtype=np.uint32)
    answers = (rng.random(rows) * (lengths - 1)).astype(np.uint32)
    lengths[:2], answers[:2] = (2, context), (1, 0)
    return lengths, answers


def tokens_of(rows: Tensor | Rows) -> Tensor:
    return rows.tokens if isinstance(rows, Rows) else rows


def labels_of(rows: Tensor | Rows) -> Tensor:
    return rows.labels if isinstance(rows, Rows) else rows


def learnt(rows: Tensor | Rows) -> Tensor | None:
    """[rows, T - 1]: whether a position's next token is learnt; None: all are."""
    return rows.labels[:, 1:] != NOT_LEARNT if isinstance(rows, Rows) else None


def valid_of(rows: Tensor | Rows) -> Tensor | None:
    """[rows, T]; None: all are."""
    return rows.valid if isinstance(rows, Rows) else None


def chosen(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values that count; the mask is of the last dimensions but those that values have more, in front."""
    return values if mask is None else values[..., mask]
