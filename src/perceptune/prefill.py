"""An LM after its prompts: keys and values written in place, tokens fed one at a time, rows that leave or divide.

Prefilled by split execution: slots are keys and values in the cache and nothing else, equal prompts share the layers
below the first one that a medium enters, and the last block computes the last position only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from perceptune.keyvalues import Pair
from perceptune.splice import Splice, with_slots
from perceptune.types import Slots

if TYPE_CHECKING:
    from perceptune.lm import FrozenLM


class Grown(Cache):
    """Keys and values of `columns` columns at most, written in place; closed columns hold zeros that nobody sees."""

    def __init__(self, n_layers: int, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        self.rows, self.columns = rows, columns
        self.length = 0
        self.held: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    def put(self, layer: int, start: int, pair: Pair, index: Tensor | None = None) -> None:
        """Writes columns from `start` on; `index` names the pair's row for each row of the batch."""
        if self.held[layer] is None:
            self.held[layer] = (self._room_for(pair.keys), self._room_for(pair.values))
        for held, given in zip(self._of(layer), (pair.keys, pair.values), strict=True):
            held[:, :, start : start + pair.width] = given if index is None else given[index]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.put(layer_idx, self.length, Pair(key_states, value_states))
        end = self.length + key_states.shape[2]
        keys, values = self._of(layer_idx)
        return keys[:, :, :end], values[:, :, :end]

    def keep_rows(self, index: Tensor) -> None:
        """Goes on with these rows alone, some of them more than once."""
        self.held = [held and (held[0][index], held[1][index]) for held in self.held]

    def exchange(self, index: Tensor, start: int) -> None:
        """Gives each row the columns from `start` on of the row that `index` names."""
        for keys, values in filter(None, self.held):
            for held in (keys, values):
                held[:, :, start : self.length] = held[index, :, start : self.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def _room_for(self, given: Tensor) -> Tensor:
        _, heads, _, size = given.shape
        return given.new_zeros(self.rows, heads, self.columns, size)

    def _of(self, layer: int) -> tuple[Tensor, Tensor]:
        held = self.held[layer]
        assert held is not None
        return held


class Prefilled:
    """Rows that go on from their prompts. `logits` (rows, vocab) are those of each row's next token."""

    def __init__(self, lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], room: int) -> None:
        self.lm, self.slots, self.mask = lm, slots, mask
        self.cache, self.logits = _prefill(lm, ids, mask, slots, room)
        self.prompt = self.cache.length  # columns, slots included
        self.rows = torch.arange(ids.shape[0], device=ids.device)  # of the batch, as it came
        self._positions = mask.sum(-1)
        self._seen = with_slots(ids, mask, sum(slot.width for slot in slots))[1]
        self._splice = Splice(slots, mask)

    def keep(self, index: Tensor) -> None:
        """Goes on with these rows, some of them more than once."""
        self.rows, self.mask, self._positions, self._seen, self.logits = (
            given[index] for given in (self.rows, self.mask, self._positions, self._seen, self.logits)
        )
        self.cache.keep_rows(index)
        # A slot's states are in the cache already, so only who may see it matters.
        of_rows = [replace(slot, present=slot.present.to(self.rows.device)[self.rows]) for slot in self.slots]
        self._splice = Splice(of_rows, self.mask)

    def feed(self, tokens: Tensor) -> Tensor:
        """The logits (rows, vocab) after one more token (rows,) each."""
        self._seen = torch.nn.functional.pad(self._seen, (0, 1), value=1)
        with self.lm.using(self._splice, None):
            out = self.lm.model(
                input_ids=tokens[:, None], attention_mask=self._seen, position_ids=self._positions[:, None],
                past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
        self.cache.length += 1
        self._positions = self._positions + 1
        self.logits = out.logits[:, -1]
        return self.logits


def _prefill(lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], room: int) -> tuple[Grown, Tensor]:
    """The cache after the prompts, and the logits (B, vocab) of the next token."""
    width = sum(slot.width for slot in slots)
    cache = Grown(lm.n_layers, ids.shape[0], width + ids.shape[1] + room)
    shared = _first_layer_with_media(slots, lm.n_layers)
    distinct, index = torch.unique(torch.cat([mask, ids], 1), dim=0, return_inverse=True)
    below = None
    if 0 < shared < lm.n_layers and len(distinct) < len(ids):
        first_mask, first_ids = distinct.split(ids.shape[1], 1)
        same = [slot for slot in slots if slot.entry < shared]
        states = lm.states_at(
            shared, first_ids, first_mask, same,
            record=lambda layer, pairs: cache.put(layer, width, pairs[-1], index),
        )  # fmt: skip
        below = (shared, states[index])

    def record(layer: int, pairs: Sequence[Pair]) -> None:
        # Below `shared` the text's own pair is there already; elsewhere its pair may be that of the last group, too.
        starts = _starts(slots, layer, width)[: len(pairs)]
        for start, pair in zip(starts, pairs, strict=True):
            cache.put(layer, start, pair)

    logits = lm.split(ids, mask, slots, text_states=below, record=record, last_only=True)
    cache.length = width + ids.shape[1]
    return cache, logits


def _starts(slots: Sequence[Slots], layer: int, width: int) -> list[int]:
    """First column of each group that is open in a layer, and of the text."""
    starts, start = [], 0
    for slot in slots:
        if slot.entry <= layer:
            starts.append(start)
        start += slot.width
    return [*starts, width]


def _first_layer_with_media(slots: Sequence[Slots], n_layers: int) -> int:
    """Below it, equal prompts have equal states."""
    own = [slot.entry for slot in slots if any(states.shape[0] > 1 for states in slot.states.values())]
    partial = [slot.entry for slot in slots if not bool(slot.present.all())]
    return min([*own, *partial], default=n_layers)
