"""Keys and values to the left of the columns that a decoder block is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True)
class KVPair:
    """Keys and values (rows, heads, columns, head size), and which of the batch's rows may attend to them."""

    keys: Tensor
    values: Tensor
    visible: Tensor | None = None  # (B,) bool; None = all
    visible_from: Tensor | None = None  # (B,) first column of the text that may attend to them; None = all

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.keys.shape[2])


class CapturedError(Exception):
    """Raised to leave a block once its keys and values are captured, as the rest of it is not needed."""


class PrefixCache(Cache):
    """Cache of one forward pass: the keys and values to the left of the columns that a block is called with."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.left: Sequence[KVPair] = ()
        self.own: KVPair | None = None  # of the columns the block was last called with
        self.leave = False  # leave the block once its keys and values are captured
        self.only_left = False  # the columns' own keys and values are already in the prefix

    def set_prefix(self, left: Sequence[KVPair], *, leave: bool = False, only_left: bool = False) -> None:
        """Set the prefix that the next call of a block attends to."""
        self.left, self.leave, self.only_left, self.own = left, leave, only_left, None

    def captured(self) -> KVPair:
        """Return the keys and values of the columns that the block was last called with."""
        if self.own is None:
            raise RuntimeError("the block asked for no keys and values: its attention knows no cache")
        return self.own

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.own = KVPair(key_states, value_states)
        if self.leave:
            raise CapturedError
        pairs = [*self.left] if self.only_left else [*self.left, self.own]
        if len(pairs) == 1:
            return pairs[0].keys, pairs[0].values
        rows = key_states.shape[0]
        return tuple(
            torch.cat([t if t.shape[0] == rows else t.expand(rows, -1, -1, -1) for t in tensors], dim=2)
            for tensors in ([p.keys for p in pairs], [p.values for p in pairs])
        )

    # The text's mask is made as if there were no slots: their columns are put in front of it later, layer by layer.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0
