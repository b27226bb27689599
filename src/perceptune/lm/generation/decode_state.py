"""Decoding state of an LM: a key-value cache written in place, whose rows can be removed, repeated or joined.

With split execution slots are only keys and values in the cache, equal prompts share the layers below the first one
that a medium enters, and the last block computes the last position only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from perceptune.lm.cross_attention import concatenate_rows
from perceptune.lm.frozen_lm import FrozenLM, LayerStates
from perceptune.lm.prefix_cache import KVPair
from perceptune.lm.slot_hooks import Splice
from perceptune.types import Prompt, Slots
from perceptune.utils.tensors import move, prepend_slot_columns

GROWTH = 64  # columns


class PreallocatedKVCache(Cache):
    """Keys and values, written in place up to `columns` columns; masked columns hold zeros."""

    def __init__(self, n_layers: int, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        self.rows, self.columns = rows, columns
        self.length = 0
        self.held: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    def write(self, layer: int, start: int, pair: KVPair, index: Tensor | None = None) -> None:
        """Write columns from `start` on; `index` gives the pair's row for each row of the batch."""
        if self.held[layer] is None:
            self.held[layer] = (self._room_for(pair.keys), self._room_for(pair.values))
        for held, given in zip(self._of(layer), (pair.keys, pair.values), strict=True):
            held[:, :, start : start + pair.width] = given if index is None else given[index]

    @classmethod
    def merge(cls, parts: Sequence[tuple[PreallocatedKVCache, int]], front: int, room: int) -> PreallocatedKVCache:
        """Concatenate the rows of several caches: of each its first `front` columns and the given number of last ones.

        All end in the same column, which preserves the distances between a row's columns.
        """
        end = front + max(last for _, last in parts)
        whole = cls(len(parts[0][0].held), sum(part.n_rows for part, _ in parts), end + room)
        for layer in range(len(whole.held)):
            both = whole._room_for(parts[0][0]._of(layer)[0]), whole._room_for(parts[0][0]._of(layer)[1])
            start = 0
            for part, last in parts:
                rows = slice(start, start := start + part.n_rows)
                for into, held in zip(both, part._of(layer), strict=True):
                    into[rows, :, :front] = held[:, :, :front]
                    into[rows, :, end - last : end] = held[:, :, part.length - last : part.length]
            whole.held[layer] = both
        whole.length = end
        return whole

    @property
    def n_rows(self) -> int:
        """Current number of rows."""
        return int(self._of(0)[0].shape[0])

    def read(self, row: int, columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield keys and values (heads, n, size) of some columns of a row, layer by layer."""
        for keys, values in map(self._of, range(len(self.held))):
            yield keys[row].index_select(1, columns), values[row].index_select(1, columns)

    def reserve(self) -> None:
        """Grow the cache if it is full."""
        if self.length == self.columns:
            self.columns += GROWTH
            self.held = [
                held and (nn.functional.pad(held[0], (0, 0, 0, GROWTH)), nn.functional.pad(held[1], (0, 0, 0, GROWTH)))
                for held in self.held
            ]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.write(layer_idx, self.length, KVPair(key_states, value_states))
        end = self.length + key_states.shape[2]
        keys, values = self._of(layer_idx)
        return keys[:, :, :end], values[:, :, :end]

    def select_rows(self, index: Tensor) -> None:
        """Keep only these rows; an index may occur more than once."""
        self.held = [held and (held[0][index], held[1][index]) for held in self.held]

    def reorder_suffix(self, index: Tensor, start: int) -> None:
        """Replace each row's columns from `start` on by those of the row given by `index`."""
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


class DecodeState:
    """Rows that continue from their prompts. `logits` (rows, vocab) are those of each row's next token.

    The cache has `room` tokens at first. With `text_states`, the prompts' states at the input of a layer, the layers
    below are not run, and each `decode_step` needs its tokens' states there.
    """

    def __init__(self, lm: FrozenLM, prompt: Prompt, room: int, *, text_states: LayerStates | None = None) -> None:
        ids, mask, self.lm = prompt.ids, prompt.mask, lm
        self.cache, self.logits = self._start(prompt, room, text_states)
        self.prompt = self.cache.length  # columns, slots included
        self.rows = torch.arange(ids.shape[0], device=ids.device)  # index in the original batch
        self._positions = mask.sum(-1)
        self._front = prompt.width
        self._seen = prepend_slot_columns(ids, mask, self._front)[1]
        self._slots = [without_states(slot, ids.device) for slot in prompt.slots if not slot.in_text]

    @property
    def layout(self) -> tuple[Hashable, ...]:
        """First layer and width of each group of slots: states of one LM with equal layouts can be merged.

        Media that the text attends to by itself also need the same modules.
        """
        return tuple((slot.entry, slot.width if slot.cross is None else slot.cross.layout) for slot in self._slots)

    def select_rows(self, index: Tensor) -> None:
        """Keep only these rows; an index may occur more than once."""
        self.rows, self._positions, self._seen, self.logits = (
            given[index] for given in (self.rows, self._positions, self._seen, self.logits)
        )
        self.cache.select_rows(index)
        self._slots = [slot.of_rows(index) for slot in self._slots]

    def reorder(self, index: Tensor) -> None:
        """Replace each row's generated tokens by those of the row given by `index`."""
        self.cache.reorder_suffix(index, self.prompt)

    def merge(self, others: Sequence[DecodeState], room: int) -> None:
        """Append the rows of other states behind this one's; columns that no row attends to are dropped.

        Raises `ValueError` for a state of another LM or `layout`.
        """
        parts = [self, *others]
        if any(part.lm is not self.lm or part.layout != self.layout for part in parts):
            raise ValueError("states of another LM or layout cannot be joined")
        texts = [part._seen[:, self._front :] for part in parts]
        texts = [text[:, int(text.any(0).int().argmax()) :] for text in texts]
        self.cache = PreallocatedKVCache.merge(
            [(part.cache, text.shape[1]) for part, text in zip(parts, texts, strict=True)], self._front, room
        )
        longest = self.cache.length - self._front
        hidden = [part._seen[:, : self._front] for part in parts]
        aligned = [nn.functional.pad(text, (longest - text.shape[1], 0)) for text in texts]
        self._seen = torch.cat([torch.cat(hidden), torch.cat(aligned)], 1)
        self._positions = torch.cat([part._positions for part in parts])
        self.logits = torch.cat([part.logits for part in parts])
        self.rows = torch.arange(len(self.logits), device=self.rows.device)
        self._slots = [_merged(same) for same in zip(*(part._slots for part in parts), strict=True)]

    def columns_of(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the columns of the slots in front, and those of a row's prompt and answer that are in the cache."""
        seen = self._seen[place, self._front :].nonzero().flatten()
        return torch.arange(self._front, device=seen.device), self._front + seen

    def hold(self, ended: Tensor) -> None:
        """Stop advancing the positions of ended rows (rows,), so that they stay in range; call before `decode_step`."""
        self._positions = self._positions - move(ended.to(self._positions.dtype), self._positions.device)

    def decode_step(self, tokens: Tensor, *, text_states: LayerStates | None = None) -> Tensor:
        """Return the logits (rows, vocab) after one more token (rows,) each; `text_states` are theirs (rows, 1, d)."""
        self.cache.reserve()
        self._seen = nn.functional.pad(self._seen, (0, 1), value=1)
        splice = Splice(self._slots, self._seen)
        splice.text_states = text_states
        with self.lm.hooks_active(splice, None), self.lm.layers_skipped(text_states):
            self.logits = self._run(
                input_ids=tokens[:, None], attention_mask=self._seen, position_ids=self._positions[:, None],
                past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
        self.cache.length += 1
        self._positions = self._positions + 1
        return self.logits

    def _start(self, prompt: Prompt, room: int, text_states: LayerStates | None) -> tuple[PreallocatedKVCache, Tensor]:
        return _prefill(self.lm, prompt, room, text_states)

    def _run(self, **inputs: Any) -> Tensor:
        logits: Tensor = self.lm.model(**inputs).logits[:, -1]
        return logits


class LowerDecodeState(DecodeState):
    """Texts in the layers below `layer` alone. In place of logits it gives the states at that layer's input.

    `logits` are first those of the whole prompts (B, T, d), then of one token each (rows, 1, d).
    """

    def __init__(self, lm: FrozenLM, prompt: Prompt, room: int, layer: int) -> None:
        self._layer = layer
        super().__init__(lm, prompt, room)

    def _start(self, prompt: Prompt, room: int, text_states: LayerStates | None) -> tuple[PreallocatedKVCache, Tensor]:
        rows, columns = prompt.ids.shape
        cache = PreallocatedKVCache(self.lm.n_layers, rows, columns + room)
        kv: list[list[KVPair]] = []
        states = self.lm.hidden_states_at(self._layer, prompt.ids, prompt.mask, kv=kv)
        for layer, pairs in enumerate(kv):
            cache.write(layer, 0, pairs[-1])
        cache.length = columns
        return cache, states

    def _run(self, **inputs: Any) -> Tensor:
        return self.lm.states_reached(self._layer, lambda: self.lm.model(**inputs))


def without_states(slot: Slots, device: torch.device) -> Slots:
    """Return the slot without states, which are in the cache already: their visibility and first layer still matter."""
    present = move(slot.present, device)
    states = {slot.entry: present.new_empty(1, slot.width, 0)} if slot.in_front else {}
    return replace(slot, states=states, present=present, visible_from=None)


def _merged(parts: Sequence[Slots]) -> Slots:
    """Return the slots of the rows of several states, one behind another."""
    attended = [slot.cross for slot in parts if slot.cross is not None]
    cross = concatenate_rows(attended) if attended else None
    return replace(parts[0], present=torch.cat([slot.present for slot in parts]), cross=cross)


def _prefill(lm: FrozenLM, prompt: Prompt, room: int, below: LayerStates | None) -> tuple[PreallocatedKVCache, Tensor]:
    """Return the cache after the prompts, and the logits (B, vocab) of the next token."""
    ids, mask, slots, width = prompt.ids, prompt.mask, prompt.slots, prompt.width
    cache = PreallocatedKVCache(lm.n_layers, ids.shape[0], width + ids.shape[1] + room)
    shared = _first_layer_with_media(slots, lm.n_layers)
    shares = below is None and 0 < shared < lm.n_layers
    distinct, index = _distinct_rows(torch.cat([mask, ids], 1)) if shares else (ids, None)
    if index is not None and len(distinct) < len(ids):
        first_mask, first_ids = distinct.split(ids.shape[1], 1)
        kv: list[list[KVPair]] = []
        same = [slot for slot in slots if slot.entry < shared]
        states = lm.hidden_states_at(shared, first_ids, first_mask, same, kv=kv)
        for layer, pairs in enumerate(kv):
            cache.write(layer, width, pairs[-1], index)
        below = (shared, states[index])
    logits, kv = lm.prefill(ids, mask, slots, text_states=below)
    for layer, pairs in enumerate(kv):
        # Below `shared` the text's own pair is already there; elsewhere its pair may include that of the last group.
        write_pairs(cache, layer, slots, pairs, width)
    cache.length = width + ids.shape[1]
    return cache, logits


def _distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows and each row's index among them, on the CPU because their number is data-dependent."""
    distinct, index = torch.unique(rows.cpu(), dim=0, return_inverse=True)
    return move(distinct, rows.device), move(index, rows.device)


def write_pairs(
    cache: PreallocatedKVCache, layer: int, slots: Sequence[Slots], pairs: Sequence[KVPair], width: int
) -> None:
    """Write a layer's keys and values of the groups of slots that are open in it, and of the text if they are given."""
    starts, start = [], 0
    for slot in slots:
        if slot.entry <= layer and slot.in_front:
            starts.append(start)
        start += slot.width
    for first, pair in zip([*starts, width][: len(pairs)], pairs, strict=True):
        cache.write(layer, first, pair)


def _first_layer_with_media(slots: Sequence[Slots], n_layers: int) -> int:
    """Return the first layer that media enter; below it, equal prompts have equal states."""
    own = [slot.entry for slot in slots if any(states.shape[0] > 1 for states in slot.states.values())]
    own += [slot.entry for slot in slots if slot.cross is not None]
    partial = [slot.entry for slot in slots if not bool(slot.present.all())]
    return min([*own, *partial], default=n_layers)
