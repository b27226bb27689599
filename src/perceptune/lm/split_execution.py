"""Split execution: only the text runs through the blocks; slots are additional keys and values.

Text columns need one key and one value of a slot per layer. So in each block a slot whose state is overwritten
before the next one is computed no further than that; a slot whose state is the same for every row (a soft prompt
that no medium precedes) is computed once for the whole batch; and in the last block only the positions that
predict a supervised token are queries. The result equals that of the reference path (`Splice`), which runs every
column through every block.

transformers passes a cache object to each block and attends to whatever its `update` returns. Replacing that call
is enough to give a layer more keys than queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from perceptune.lm.cross_attention import MediaReader, in_turn
from perceptune.lm.kernels.short_attention import causal_mask, in_terms_of, show_something
from perceptune.lm.prefix_cache import CapturedError, KVPair, PrefixCache
from perceptune.lm.slot_hooks import MASK
from perceptune.types import Slots
from perceptune.utils.tensors import move

Forward = Callable[..., Any]
HIDDEN = "hidden_states"
ALIBI = "alibi"  # (B x heads, 1, columns): BLOOM's positional bias of each key


@dataclass
class SlotGroup:
    """Columns of one `Slots` on their way through the layers."""

    slots: Slots
    start: int  # first column
    present: Tensor | None  # (B,) bool; None = all rows
    hidden: Tensor | None = None  # (1 or B, n, d) output of the last block it was run through

    def entering(self, index: int, dtype: torch.dtype) -> Tensor:
        """Return the states (1 or B, n, d) of the columns at the input of block `index`."""
        states = self.slots.states.get(index)
        if states is not None:
            return states.to(dtype)
        assert self.hidden is not None
        return self.hidden


@dataclass(frozen=True)
class KnownSlots:
    """Keys and values of the first `groups` of slots, which are not computed again."""

    groups: int
    kv: Sequence[tuple[Tensor, Tensor]]  # of each layer: (1, heads, columns, size)

    def pair(self, layer: int, group: SlotGroup) -> KVPair:
        """Return those of one group."""
        keys, values = self.kv[layer]
        columns = slice(group.start, group.start + group.slots.width)
        return KVPair(keys[:, :, columns], values[:, :, columns], group.present, group.slots.visible_from)


class SplitForward:
    """One forward pass of `[slots][pad][text]`; `block` returns the replacement of each block's forward."""

    def __init__(self, slots: Sequence[Slots], n_layers: int, *, tuples: bool = False) -> None:
        self.n_layers = n_layers
        self.tuples = tuples  # whether the LM's blocks return tuples (GPT-J's do, Llama's do not)
        self.groups: list[SlotGroup] = []
        for one in slots:
            if not one.in_front:
                continue
            shown = None if bool(one.present.all()) else move(one.present, one.states[one.entry].device)
            self.groups.append(SlotGroup(one, self.width, shown))
        self.reader = MediaReader(slots)
        self.past = PrefixCache()
        self.text_states: tuple[int, Tensor] | None = None  # (layer, (B, T, d)): inputs of this layer
        self.query_range: tuple[int, int] | None = None  # text columns that the last block computes; None = all
        self.kv: list[list[KVPair]] | None = None  # if a list, filled with what the text attends to in each layer
        self.known: KnownSlots | None = None
        self._masks: dict[tuple[int, int], Tensor] = {}

    @property
    def width(self) -> int:
        """Number of slot columns."""
        return sum(group.slots.width for group in self.groups)

    def block(self, index: int, names: Sequence[str], forward: Forward) -> Forward:
        """Return what block `index` runs in this pass instead of `forward`, whose arguments have these names."""

        def run(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names[: len(args)], args, strict=True)) | kwargs
            text: Tensor = given.pop(HIDDEN)
            if index == 0:
                text = text[:, self.width :]
            if self.text_states is not None and index <= self.text_states[0]:
                text = self.text_states[1].to(text.dtype)
            text = self.around(partial(self._layer, index, forward, given), text)
            return (text,) if self.tuples else text

        return run

    def around(self, layer: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
        """Run one layer; replaced to save memory, e.g. by checkpointing."""
        return layer(text)

    def _layer(self, index: int, forward: Forward, given: dict[str, Any], text: Tensor) -> Tensor:
        """Run all columns through one block: each attends to the keys and values of those to its left."""
        block = _Block(forward, self.past, given, text.shape[0], self.width + text.shape[1])
        left, joint = self._open_slots(index, block, text)
        if self.text_states is not None and index < self.text_states[0]:
            self._note_kv(left)
            return text
        text = self.reader.add(index, text, 0)
        mask = self._text_mask(given[MASK], left, text)
        if joint is not None:
            out, own = self._joint_forward(block, joint, text, mask, left)
        elif index < self.n_layers - 1:
            out, own = block.full(text, mask, self.width, left)
        else:
            first, end = self.query_range or (0, text.shape[1])
            out, own = _last(block, text, mask, self.width, left, first, end)
            # The LM's own code expects its last block to return this width; the other columns are not used.
            out = torch.nn.functional.pad(out, (0, 0, self.width + first, text.shape[1] - end))
        self._note_kv([*left, own])
        return out

    def _open_slots(self, index: int, block: _Block, text: Tensor) -> tuple[list[KVPair], Tensor | None]:
        """Return keys and values of the open groups, and the states (B, n, d) of one that runs with the text."""
        left: list[KVPair] = []
        rows = 1  # 1 as long as all columns so far are the same for the whole batch
        for number, group in enumerate(self.groups):
            if group.slots.entry > index:
                continue
            if self.known is not None and number < self.known.groups:
                left.append(self.known.pair(index, group))
                continue
            hidden = group.entering(index, text.dtype)
            rows = max(rows, hidden.shape[0])
            if rows == text.shape[0] > 1 and self._is_joint(index, group):
                return left, hidden.expand(rows, -1, -1)
            left.append(self._slots_through(index, block, group, hidden, rows, left))
        return left, None

    def _is_joint(self, index: int, group: SlotGroup) -> bool:
        """Whether this open group is next to the text and needs this block's full output, so that both run jointly."""
        if self.text_states is not None and index < self.text_states[0]:
            return False
        is_open = group.present is None and group.slots.visible_from is None
        return group is self.groups[-1] and is_open and not self._is_left_early(index, group)

    def _is_left_early(self, index: int, group: SlotGroup) -> bool:
        """Whether only the keys and values of the group are needed in this block."""
        return index + 1 == self.n_layers or index + 1 in group.slots.states

    def _joint_forward(
        self, block: _Block, hidden: Tensor, text: Tensor, mask: Tensor, left: Sequence[KVPair]
    ) -> tuple[Tensor, KVPair]:
        """Run the last group and the text in one call: fewer, larger products."""
        group = self.groups[-1]
        out, own = block.full(torch.cat([hidden, text], 1), self._joint_mask(hidden, mask, left), group.start, left)
        group.hidden = out[:, : hidden.shape[1]]
        return out[:, hidden.shape[1] :], own

    def _joint_mask(self, hidden: Tensor, mask: Tensor, left: Sequence[KVPair]) -> Tensor:
        """Extend the text's mask (B, 1, T, S + T) to (B, 1, n + T, S + n + T)."""
        key = (id(mask), -1)
        if key not in self._masks:
            seen, n, length = sum(pair.width for pair in left), hidden.shape[1], mask.shape[-2]
            shut = torch.zeros(hidden.shape[0], 1, n, length, dtype=torch.bool, device=mask.device)
            above = torch.cat([_slot_mask(left, hidden, mask), in_terms_of(mask, shut)], -1)
            open_ = in_terms_of(mask, torch.ones(hidden.shape[0], 1, length, n, dtype=torch.bool, device=mask.device))
            self._masks[key] = torch.cat([above, torch.cat([mask[..., :seen], open_, mask[..., seen:]], -1)], -2)
        return self._masks[key]

    def _note_kv(self, pairs: list[KVPair]) -> None:
        if self.kv is not None:
            self.kv.append(pairs)

    def _slots_through(
        self, index: int, block: _Block, group: SlotGroup, hidden: Tensor, rows: int, left: Sequence[KVPair]
    ) -> KVPair:
        """Return keys and values of a group's columns in this block; run the whole block if the next one needs it."""
        if self._is_left_early(index, group):
            own = block.keys_and_values(hidden, group.start)
        else:
            hidden = hidden.expand(rows, -1, -1)
            group.hidden, own = block.full(hidden, _slot_mask(left, hidden, block.given[MASK]), group.start, left)
        return KVPair(own.keys, own.values, group.present, group.slots.visible_from)

    def _text_mask(self, mask: Tensor | None, left: Sequence[KVPair], text: Tensor) -> Tensor:
        """Return the mask (B, 1, T, S + T): the open slots' columns, then the LM's own mask between text columns."""
        key = (id(mask), sum(pair.width for pair in left))  # the LM keeps its masks alive during the forward
        if key not in self._masks:
            rows, length = text.shape[:2]
            own = causal_mask(length, text.device) if mask is None else mask[..., self.width :, self.width :]
            columns = torch.arange(length, device=text.device)
            seen = in_terms_of(own, _seen(left, rows, columns))
            whole = torch.cat([seen, own.expand(rows, 1, -1, -1)], -1)
            gradients = torch.is_grad_enabled() and whole.dtype == torch.bool
            self._masks[key] = show_something(whole) if gradients else whole
        return self._masks[key]


@dataclass
class _Block:
    """One block of the LM, and the arguments that its own code passes beside the hidden states."""

    forward: Forward
    past: PrefixCache
    given: dict[str, Any]
    rows: int  # of the batch
    columns: int  # number of columns that masks and positions were made for

    def full(
        self, hidden: Tensor, mask: Tensor, start: int, left: Sequence[KVPair], *, only_left: bool = False
    ) -> tuple[Tensor, KVPair]:
        """Return the output of the columns from `start` on, and their own keys and values."""
        self.past.set_prefix(left, only_left=only_left)
        arguments = self._arguments(hidden, start)
        if arguments.get(ALIBI) is not None:
            with_text = only_left or start + hidden.shape[1] == self.columns
            # All slots are at position 0, so it does not matter which of their columns are kept.
            keys = slice(-mask.shape[-1], None) if with_text else slice(mask.shape[-1])
            heads = arguments[ALIBI].shape[0] // self.rows
            arguments[ALIBI] = arguments[ALIBI][: heads * hidden.shape[0], :, keys]
        out = self.forward(hidden, **arguments, **{MASK: mask})
        return (out[0] if isinstance(out, tuple) else out), self.past.captured()

    def keys_and_values(self, hidden: Tensor, start: int) -> KVPair:
        """Return keys and values alone; the block is left as soon as they are captured."""
        self.past.set_prefix((), leave=True)
        with contextlib.suppress(CapturedError):
            self.forward(hidden, **self._arguments(hidden, start), **{MASK: None})
        return self.past.captured()

    def _arguments(self, hidden: Tensor, start: int) -> dict[str, Any]:
        rows, n = hidden.shape[:2]
        wanted = slice(start, start + n)
        return {name: _cut(v, self.columns, wanted, rows) for name, v in self.given.items() if name != MASK}


def _last(
    block: _Block, text: Tensor, mask: Tensor, start: int, left: Sequence[KVPair], first: int, end: int
) -> tuple[Tensor, KVPair]:
    """Run the last block: keys and values for the whole text, the rest only for the columns [first, end)."""
    if end - first > 0.75 * text.shape[1]:  # too little to save
        out, own = block.full(text, mask, start, left)
        return out[:, first:end], own
    own = block.keys_and_values(text, start)
    out, _ = block.full(text[:, first:end], mask[..., first:end, :], start + first, [*left, own], only_left=True)
    return out, own


def _cut(value: Any, columns: int, wanted: slice, rows: int) -> Any:
    """Select some columns of an argument of the block, if it has a column axis (the second)."""
    if isinstance(value, tuple):
        return tuple(_cut(v, columns, wanted, rows) for v in value)
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == columns:
        # Slots are at position 0 in every row, so one row's positions serve a group that is computed once.
        return value[:rows, wanted]
    return value


def _slot_mask(left: Sequence[KVPair], hidden: Tensor, like: Tensor | None) -> Tensor:
    """Return the slots' mask: each attends to itself and to those before it."""
    rows, n = hidden.shape[:2]
    own = causal_mask(n, hidden.device).expand(rows, 1, -1, -1)
    queries = torch.full((n,), -1, device=hidden.device)
    return in_terms_of(like, torch.cat([_seen(left, rows, queries), own], -1))


def _seen(left: Sequence[KVPair], rows: int, queries: Tensor) -> Tensor:
    """Return (rows, 1, Q, S) bool: the slots to the left that the text columns `queries` (Q,) attend to; -1 = a slot.

    They are hidden in rows that have none, and from earlier turns.
    """
    parts = [torch.ones(rows, 1, len(queries), 0, dtype=torch.bool, device=queries.device)]
    for pair in left:
        seen = in_turn(pair.visible_from, queries, rows)[..., None]
        if pair.visible is not None:
            seen = seen & move(pair.visible, queries.device)[:, None, None, None]
        parts.append(seen.expand(-1, 1, -1, pair.width))
    return torch.cat(parts, dim=-1)
