"""Keys and values of finished answers, for the next turn of the same conversation.

A turn repeats the text of the turns before it, so that only what is new needs to be computed: the result is that of
the whole text. Kept are the last conversations that fit into a given memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from perceptune.lm.frozen_lm import FrozenLM, LayerStates
from perceptune.lm.generation.decode_state import DecodeState, PreallocatedKVCache, write_pairs
from perceptune.lm.prefix_cache import KVPair
from perceptune.lm.slot_hooks import Splice, slots_in_text
from perceptune.lm.split_execution import KnownSlots
from perceptune.types import IN_TEXT, Prompt, Slots
from perceptune.utils.tensors import prepend_slot_columns

Columns = tuple[Hashable, ...]  # for each column what its keys and values depend on, beside the columns before it
LEAST = 8  # columns whose reuse saves more than it costs


MediaContent = Mapping[tuple[str, int], Hashable]  # of each medium, by modality and number


class Content(NamedTuple):
    """What the keys and values of a text depend on."""

    columns: Columns
    media: MediaContent


@dataclass(frozen=True)
class KnownText:
    """The first columns of a text: keys and values (1, heads, columns, size) of each layer."""

    kv: Sequence[tuple[Tensor, Tensor]]
    columns: int
    front: Sequence[tuple[Tensor, Tensor]] = ()  # of the slots in front of it
    groups: Columns = ()  # what each group of these slots depends on, beside those before it

    def cut(self, columns: int) -> KnownText:
        """Return the first `columns` columns."""
        return replace(
            self, kv=[(keys[:, :, :columns], vals[:, :, :columns]) for keys, vals in self.kv], columns=columns
        )

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(tensor.numel() * tensor.element_size() for pair in [*self.kv, *self.front] for tensor in pair)


def text_of(state: DecodeState, place: int, groups: Columns) -> KnownText:
    """Return a copy of the columns of a row: its slots, its text, and the tokens that were generated."""
    front, seen = state.columns_of(place)
    parts = [[(k[None], v[None]) for k, v in state.cache.read(place, columns)] for columns in (seen, front)]
    return KnownText(parts[0], len(seen), parts[1], groups)


def groups_of(slots: Sequence[Slots], media: MediaContent) -> Columns:
    """Return what each group of slots in front of the text depends on, beside those before it."""
    return tuple(
        (slot.name, slot.order, slot.entry, slot.width, media.get((slot.name, slot.order)))
        for slot in slots
        if slot.in_front
    )


class KnownTexts:
    """Texts that a later one may continue; the least recently used ones are dropped beyond `megabytes`."""

    def __init__(self, megabytes: float) -> None:
        self._budget, self._size = megabytes * 2**20, 0
        self._kept: OrderedDict[tuple[Hashable, Columns], KnownText] = OrderedDict()

    def find(self, owner: Hashable, content: Columns) -> KnownText | None:
        """Return the longest known start of a text of `owner`, at least one column shorter than it; None if short."""
        best, columns = None, LEAST - 1
        for name, kept in self._kept.items():
            if name[0] == owner and (same := _common(name[1], content, min(kept.columns, len(content) - 1))) > columns:
                best, columns = name, same
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best].cut(columns)

    def keep(self, owner: Hashable, content: Columns, known: KnownText) -> None:
        """Keep the columns of a text, and drop those that it continues."""
        for name in [name for name in self._kept if name[0] == owner and name[1] == content[: len(name[1])]]:
            self._drop(name)
        if known.size <= self._budget:
            self._kept[owner, content] = known
            self._size += known.size
        while self._size > self._budget:
            self._drop(next(iter(self._kept)))

    @property
    def size(self) -> int:
        """Number of bytes that are kept."""
        return self._size

    def _drop(self, name: tuple[Hashable, Columns]) -> None:
        self._size -= self._kept.pop(name).size


def _common(one: Columns, other: Columns, most: int) -> int:
    """Return the length of the common start of two texts, at most `most`."""
    return next((place for place in range(most) if one[place] != other[place]), most)


def columns_of(ids: Sequence[int], media: dict[int, list[Hashable]]) -> Columns:
    """Return the content of a text; `media` gives for a column the media that are first seen there."""
    return tuple((token, *media.get(place, ())) for place, token in enumerate(ids))


def make_keeper(
    known: KnownTexts, owner: Hashable, content: Content, slots: Sequence[Slots], tokens: Sequence[int]
) -> Callable[[DecodeState, int], None]:
    """Return what keeps a row's text once it has ended; `tokens` is the list to which its answer is appended."""
    groups = groups_of(slots, content.media)

    def keep(state: DecodeState, place: int) -> None:
        # The last token was chosen, but not run.
        columns = (*content.columns, *((token,) for token in tokens[:-1]))
        known.keep(owner, columns, text_of(state, place, groups))

    return keep


class ContinuedState(DecodeState):
    """One row whose text begins with a known one: only the columns behind that are computed."""

    def __init__(self, lm: FrozenLM, prompt: Prompt, room: int, known: KnownText, media: MediaContent) -> None:
        self._known, self._groups = known, groups_of(prompt.slots, media)
        super().__init__(lm, prompt, room)

    def _start(self, prompt: Prompt, room: int, text_states: LayerStates | None) -> tuple[PreallocatedKVCache, Tensor]:
        ids, mask, slots, width, past = prompt.ids, prompt.mask, prompt.slots, prompt.width, self._known.columns
        cache = PreallocatedKVCache(self.lm.n_layers, 1, width + ids.shape[1] + room)
        if width:
            self._write_slots(cache, ids[:, :1], mask[:, :1], slots, width)
        for layer, (keys, values) in enumerate(self._known.kv):
            cache.write(layer, width, KVPair(keys, values))
        cache.length = width + past
        new, seen, positions = ids[:, past:], *prepend_slot_columns(ids, mask, width)[1:]
        last = torch.tensor([new.shape[1] - 1], device=ids.device)
        in_text = slots_in_text(new, slots, 0, past=cache.length, done=int((ids[:, :past] == IN_TEXT).sum()))
        with self.lm.hooks_active(Splice(slots, mask), last, in_text):
            logits: Tensor = self.lm.model(
                input_ids=new.clamp_min(0), attention_mask=seen, position_ids=positions[:, width + past :],
                past_key_values=cache, use_cache=True,
            ).logits  # fmt: skip
        cache.length += new.shape[1]
        return cache, logits

    def _write_slots(
        self, cache: PreallocatedKVCache, ids: Tensor, mask: Tensor, slots: Sequence[Slots], width: int
    ) -> None:
        """Write the slots in front, and compute those that are not known.

        They attend to no text, so that any will do: one token, with any states.
        """
        same = _common(self._known.groups, self._groups, min(len(self._known.groups), len(self._groups)))
        if same == len(self._groups) == len(self._known.groups):
            for layer, (keys, values) in enumerate(self._known.front):
                cache.write(layer, 0, KVPair(keys, values))
            return
        slots = [slot for slot in slots if slot.in_front]
        first = min(slot.entry for slot in slots)
        below = (first, torch.zeros(1, 1, self.lm.hidden_size, device=ids.device)) if first else None
        known = KnownSlots(same, self._known.front)
        for layer, pairs in enumerate(self.lm.prefill(ids, mask, slots, text_states=below, known=known)[1]):
            if layer >= first:
                write_pairs(cache, layer, slots, pairs[:-1], width)
