"""Slots inside a frozen LM: the columns that the text attends to in each layer, and the states written into them.

The LM is given `[slots][pad][text]` with attention_mask 0 on the slots, so every layer hides them as it hides
padding. A pre-hook on each layer opens the columns from their entry layer on and overwrites their hidden states if
the method provides them. All layers keep one length, hence the KV cache, left padding and beam search of
transformers work unchanged. A slot's mask row is causal: it attends to itself and the open slots before it, never
to the text. (The official eP-ALM code lets it attend to the whole text, future included; `Slots.sees_text`
reproduces that, for parity.)
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.lm.cross_attention import MediaReader, in_turn
from perceptune.lm.kernels.short_attention import show_something
from perceptune.types import IN_TEXT, Slots
from perceptune.utils.tensors import move

MASK = "attention_mask"


class Splice:
    """States and masks of the slots in one forward pass (or one generation). Built per call, read by the hooks."""

    def __init__(self, slots: Sequence[Slots], text_mask: Tensor) -> None:
        self.text_mask = text_mask.bool()  # (B, T) the prompt's tokens, padding False
        # Of the slots in the text only columns are left, which are the text's.
        self.slots = [slot for slot in slots if slot.in_front]
        self._reader = MediaReader(slots)
        self._present = [move(slot.present, text_mask.device) for slot in self.slots]
        self.width = sum(slot.width for slot in self.slots)
        self.past = 0  # tokens already in the KV cache; set before each forward
        self.text_states: tuple[int, Tensor] | None = None  # (layer, (B, T, d)): inputs of this layer
        self._masks: dict[tuple[int, int], Tensor] = {}

    def start(self, past: int) -> None:
        """Start a forward of the LM, after `past` cached tokens; 0 means prefill."""
        self.past = past
        self._masks.clear()

    def layer_input(self, layer: int, hidden: Tensor) -> Tensor:
        """Return a layer's input (B, S + T, d) with its slots' states written in, and the text's cross-attention added.

        With a cache there are only columns of the text: (B, T, d).
        """
        hidden = self.inject_states(layer, hidden)
        if not self._reader.acts_at(layer):
            return hidden
        slots, first = (0, self.past - self.width) if self.past else (self.width, 0)
        return torch.cat([hidden[:, :slots], self._reader.add(layer, hidden[:, slots:], first)], 1)

    def inject_states(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the hidden states (B, S + T, d) with those of this layer's slots written in."""
        if self.past:  # decoding: the slots are in the cache
            is_given = self.text_states is not None and self.text_states[0] == layer
            return self.text_states[1].to(hidden.dtype) if is_given else hidden  # type: ignore[index]
        pieces: list[Tensor] = []
        start, changed = 0, False
        for slot in self.slots:
            states = slot.states.get(layer)
            changed |= states is not None
            if states is None:
                pieces.append(hidden[:, start : start + slot.width])
            else:
                pieces.append(states.to(hidden.dtype).expand(hidden.shape[0], -1, -1))
            start += slot.width
        text = hidden[:, start:]
        if self.text_states is not None and self.text_states[0] == layer:
            text, changed = self.text_states[1].to(hidden.dtype), True
        return torch.cat([*pieces, text], dim=1) if changed else hidden

    def unmask_slots(self, layer: int, mask: Tensor) -> Tensor:
        """Return the layer's 4-D mask (bool: True = visible; float: 0 = visible) with the open columns made visible."""
        n_open = sum(slot.entry <= layer for slot in self.slots)
        key = (n_open, id(mask))  # several layers share a mask object, and the LM keeps it alive during the forward
        if key not in self._masks:
            self._masks[key] = self._opened(layer, mask)
        return self._masks[key]

    def _opened(self, layer: int, mask: Tensor) -> Tensor:
        visible = self._visible(layer, mask)  # (B, 1, Q or 1, S)
        if mask.dtype == torch.bool:
            columns = mask[..., : self.width] | visible
        else:
            columns = mask[..., : self.width].masked_fill(visible, 0.0)
        rest = mask[..., self.width :]
        if self.sees_text and not self.past:
            rest = self._see_all_text(rest)
        opened = torch.cat([columns, rest.expand(*columns.shape[:-1], -1)], dim=-1)
        return show_something(opened) if opened.dtype == torch.bool and torch.is_grad_enabled() else opened

    def _visible(self, layer: int, mask: Tensor) -> Tensor:
        device, n_queries = mask.device, mask.shape[-2]
        opened = torch.cat(
            [
                (self._present[n] & (slot.entry <= layer))[:, None].expand(-1, slot.width)
                for n, slot in enumerate(self.slots)
            ],
            dim=1,
        )  # (B, S)
        if self.past:
            return opened[:, None, None, :] & self._not_earlier(self.past - self.width, n_queries, device)
        queries = torch.arange(n_queries, device=device)[:, None]
        columns = torch.arange(self.width, device=device)[None, :]
        causal = columns <= queries
        if self.sees_text:
            causal = causal | self._seeing_rows(n_queries, device)[:, None]
        seen = opened[:, None, None, :] & causal & self._not_earlier(-self.width, n_queries, device)
        # A slot always attends to itself: a row that attends to nothing is NaN in some attention kernels.
        return seen | (columns == queries)

    def _not_earlier(self, first: int, n_queries: int, device: torch.device) -> Tensor:
        """Return (B or 1, 1, Q or 1, S): whether queries, the first at text column `first`, are of the slots' turn.

        Negative columns are the slots themselves; those of one medium see each other.
        """
        if all(slot.visible_from is None for slot in self.slots):
            return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        queries = torch.arange(first, first + n_queries, device=device)
        parts = []
        start = -self.width
        for slot in self.slots:
            own = (queries >= start) & (queries < start + slot.width)
            seen = in_turn(slot.visible_from, queries, len(slot.present)) | own
            parts.append(seen[..., None].expand(-1, -1, -1, slot.width))
            start += slot.width
        return torch.cat(parts, -1)

    @property
    def sees_text(self) -> bool:
        """Whether any slot attends to the text: its state changes with every new token, so nothing can be cached."""
        return any(slot.sees_text for slot in self.slots)

    def _seeing_rows(self, n_queries: int, device: torch.device) -> Tensor:
        rows = [slot.sees_text for slot in self.slots for _ in range(slot.width)]
        return move(torch.tensor(rows + [False] * (n_queries - self.width)), device)

    def _see_all_text(self, rest: Tensor) -> Tensor:
        """Return rows that attend to every text token, future ones included, but never to padding: batched == alone."""
        grown = rest.shape[-1] - self.text_mask.shape[1]  # tokens generated since, none of them padding
        text = nn.functional.pad(self.text_mask, (0, grown), value=True)[:, None, None, :]
        rows = self._seeing_rows(rest.shape[-2], rest.device)[None, None, :, None]
        if rest.dtype == torch.bool:
            return torch.where(rows, text, rest)
        lowest = torch.finfo(rest.dtype).min
        return torch.where(rows, torch.zeros_like(rest).masked_fill(~text, lowest), rest)


class InText:
    """States of slots that stand in the text: they enter in place of the embeddings, with positions of their own."""

    def __init__(self, ids: Tensor, slot: Slots, width: int, *, past: int = 0, done: int = 0) -> None:
        """Prepare the slots of `ids` (B, T), the text behind `width` new columns and `past` cached ones.

        The first `done` slots of each row are among the cached ones.
        """
        self.past = past
        places = ids == IN_TEXT
        states = slot.states[0][:, done:]
        nth = (places.cumsum(-1) - 1).clamp(0, states.shape[1] - 1)
        rows = states.expand(len(ids), -1, -1)
        given = rows.gather(1, nth[..., None].expand(-1, -1, states.shape[2]))
        self._places = nn.functional.pad(places, (width, 0))[..., None]  # (B, S + T, 1)
        self._states = nn.functional.pad(given.masked_fill(~places[..., None], 0), (0, 0, width, 0))

    def clear(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings (B, S + T, d) with zeros at the slots, to which positions are then added."""
        return embeddings.masked_fill(self._of(self._places, embeddings), 0)

    def add(self, hidden: Tensor) -> Tensor:
        """Return the input of layer 0 with the slots' states added."""
        return hidden + self._of(self._states, hidden).to(hidden.dtype)

    def _of(self, given: Tensor, columns: Tensor) -> Tensor:
        """Extend by the tokens that were generated since, for LMs without a cache."""
        grown = columns.shape[1] - given.shape[1]
        return nn.functional.pad(given, (0, 0, 0, grown)) if grown else given


def slots_in_text(ids: Tensor, slots: Sequence[Slots], width: int, *, past: int = 0, done: int = 0) -> InText | None:
    """Return the slots that stand in the text `ids` (B, T); None if there are none. See `InText`."""
    found = next((slot for slot in slots if slot.in_text and slot.states[0].shape[1] > done), None)
    return None if found is None else InText(ids, found, width, past=past, done=done)


def argument_names(layer: nn.Module) -> list[str]:
    """Return the names of a decoder layer's positional arguments, in their order."""
    parameters = inspect.signature(layer.forward).parameters
    return [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


def replace_inputs(
    splice: Splice, layer: int, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the layer's arguments with hidden states and mask replaced by the splice."""
    arguments = list(args)
    if args:
        arguments[0] = splice.layer_input(layer, args[0])
    else:
        kwargs = {**kwargs, "hidden_states": splice.layer_input(layer, kwargs["hidden_states"])}
    if splice.width == 0:
        return tuple(arguments), kwargs
    mask = kwargs.get(MASK) if MASK in kwargs else (args[position] if position < len(args) else None)
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise RuntimeError(f"layer {layer} received no 4-D attention mask although slots are in use")
    if MASK in kwargs:
        kwargs = {**kwargs, MASK: splice.unmask_slots(layer, mask)}
    else:
        arguments[position] = splice.unmask_slots(layer, mask)
    return tuple(arguments), kwargs
