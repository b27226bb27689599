"""Rows of unequal length as one tensor, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, T) of rows padded on the left to the longest."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    return ids, last_columns(length, [len(row) for row in rows]).long()


def last_columns(length: int, numbers: Sequence[int]) -> Tensor:
    """(B, length) bool: in row i the last `numbers[i]` columns."""
    return torch.arange(length, 0, -1)[None] <= torch.tensor(numbers)[:, None]
