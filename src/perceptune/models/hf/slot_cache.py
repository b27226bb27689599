"""The key-value cache of transformers' loops: its length counts the text alone, as input ids and masks do."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from perceptune.types import Slots


class SlotCache(Cache):
    """Keys and values of slots and text, without a window, because slots must stay visible.

    `inner` is the cache that the LM is given; `slots` say, without states, which of its first columns are visible.
    """

    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.inner = DynamicCache()
        self.slots: list[Slots] = []

    @property
    def width(self) -> int:
        """Number of columns in front of the text."""
        return sum(slot.width for slot in self.slots)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns of the text."""
        length = int(self.inner.get_seq_length(layer_idx))
        return max(length - self.width, 0)

    def update(self, *_: Any, **__: Any) -> Any:
        """Refuse: the LM writes to `inner`."""
        raise RuntimeError("a SlotCache belongs to a Perceptune model, whose LM writes to `inner`")

    def reorder_cache(self, beam_idx: Any) -> None:
        """Replace the rows by those that beam search goes on with, which are of the same samples."""
        self.inner.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Any) -> None:
        """Keep some rows."""
        self.inner.batch_select_indices(indices)
        self.slots = _rows(self.slots, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.inner.batch_repeat_interleave(repeats)
        if self.slots:
            rows = torch.arange(len(self.slots[0].present))
            self.slots = _rows(self.slots, rows.repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """Cut the text to `max_length` columns, or, if it is negative, by so many."""
        self.inner.crop(max_length + self.width if max_length > 0 else max_length)


def _rows(slots: Sequence[Slots], index: torch.Tensor) -> list[Slots]:
    return [slot.of_rows(index) for slot in slots]
