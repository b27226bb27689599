"""Generation. Greedy and sampling run in a loop of our own, beam search in transformers'; the tokens are the same.

The loop prefills by split execution: slots are keys and values in the cache and nothing else, equal prompts share the
layers below the first one that a medium enters, and the last block computes the last position only. Keys and values are
written in place, and rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from perceptune.keyvalues import Pair
from perceptune.splice import Splice, with_slots
from perceptune.types import Decoding, Slots

if TYPE_CHECKING:
    from perceptune.lm import FrozenLM

LEAVE_AT = 0.75  # rows leave the batch when so many of them, or fewer, are still going on


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
        """Goes on with these rows alone."""
        self.held = [held and (held[0][index], held[1][index]) for held in self.held]

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


def one_by_one(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], decoding: Decoding, eos: int
) -> list[list[int]]:
    """Greedy decoding or sampling: new tokens of each row, up to and without the end token."""
    rows = ids.shape[0]
    cache, logits = _prefill(lm, ids, mask, slots, decoding.max_new_tokens)
    choose = _chooser(decoding, rows)
    going = torch.arange(rows, device=ids.device)  # rows still in the batch
    positions = mask.sum(-1)
    seen = with_slots(ids, mask, sum(slot.width for slot in slots))[1]
    answers: list[list[int]] = [[] for _ in range(rows)]
    ended = [False] * rows
    splice = Splice(slots, mask)
    for step in range(decoding.max_new_tokens):
        tokens = choose(logits, going)
        for row, token in zip(going.tolist(), tokens.tolist(), strict=True):
            ended[row] = ended[row] or token == eos
            if not ended[row]:
                answers[row].append(token)
        alive = [place for place, row in enumerate(going.tolist()) if not ended[row]]
        if not alive or step + 1 == decoding.max_new_tokens:
            break
        if len(alive) <= LEAVE_AT * len(going):
            index = torch.tensor(alive, device=ids.device)
            going, tokens, positions, seen, mask = (t[index] for t in (going, tokens, positions, seen, mask))
            cache.keep_rows(index)
            splice = Splice([_rows(slot, going) for slot in slots], mask)
        seen = torch.nn.functional.pad(seen, (0, 1), value=1)
        with lm.using(splice, None):
            out = lm.model(
                input_ids=tokens[:, None], attention_mask=seen, position_ids=positions[:, None], past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
        cache.length += 1
        positions = positions + 1
        logits = out.logits[:, -1]
    return answers


def with_transformers(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], decoding: Decoding, eos: int, pad: int
) -> list[list[int]]:
    """transformers' `generate`: beam search, and what cannot be cached."""
    from transformers import DynamicCache, GenerationConfig

    beams = decoding.beams
    splice = Splice([_repeated(slot, beams) for slot in slots], mask.repeat_interleave(beams, 0))
    ids, mask, _ = with_slots(ids, mask, splice.width)
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.sample else {}
    search = {"length_penalty": decoding.length_penalty} if beams > 1 else {}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, num_beams=beams, do_sample=decoding.sample,
        eos_token_id=eos, pad_token_id=pad, use_cache=not splice.sees_text, **sampling, **search,
    )  # fmt: skip
    # An unwindowed cache: a sliding-window cache would drop the slots, which are exempt from the window.
    cache = {} if splice.sees_text else {"past_key_values": DynamicCache()}
    with lm.using(splice, None):
        sequences = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **cache)
    return [_until(row, eos) for row in sequences[:, ids.shape[1] :].tolist()]


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


def _chooser(decoding: Decoding, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits of the rows going on, their numbers) -> next token of each."""
    if not decoding.sample:
        return lambda logits, going: logits.float().argmax(-1)
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    if decoding.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_p < 1.0:
        warpers.append(TopPLogitsWarper(decoding.top_p))

    def draw(logits: Tensor, going: Tensor) -> Tensor:
        scores = logits.float()
        for warper in warpers:
            scores = warper(None, scores)
        # Numbers are drawn for all rows, ended ones too: what a row draws must not depend on the others' lengths.
        chances = scores.new_zeros(rows, scores.shape[-1])
        chances[:, 0] = 1.0
        chances[going] = scores.softmax(-1)
        return torch.multinomial(chances, 1)[going, 0]

    return draw


def _repeated(slot: Slots, times: int) -> Slots:
    states = {
        layer: tensor if tensor.shape[0] == 1 else tensor.repeat_interleave(times, 0)
        for layer, tensor in slot.states.items()
    }
    return replace(slot, states=states, present=slot.present.repeat_interleave(times, 0))


def _rows(slot: Slots, rows: Tensor) -> Slots:
    """The slot for some rows. Its states are in the cache already, so only who may see it matters."""
    return replace(slot, present=slot.present.to(rows.device)[rows])


def _until(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos)] if eos in tokens else tokens
