"""Generation: greedy, sampling and beam search in loops of our own, which give transformers' tokens.

What cannot be split, and what depends on the answer so far, runs transformers' own loop (`hf_generate`). Rows
that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.generation.beam_search import beam_search
from perceptune.lm.generation.continuous_batch import ContinuousBatch, GeneratedSequence
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.sampling import Sampler, make_sampler
from perceptune.lm.slot_hooks import Splice, prepend_slot_columns
from perceptune.types import Decoding, Slots

if TYPE_CHECKING:
    from perceptune.lm.frozen_lm import FrozenLM


class StreamCallback(Protocol):
    """Looks on while rows are generated, and may end them before their time."""

    def on_token(self, row: int, token: int) -> bool:
        """Told every token of a row when it is chosen, the end token included; False: the row ends with it.

        Where tokens are not final before the end (beams, transformers' loop) it is not called.
        """

    def is_wanted(self, row: int) -> bool:
        """Whether somebody still waits for a row; what is returned of one that nobody waits for is undefined."""


def generate(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], decoding: Decoding, *, eos: int, pad: int,
    seeds: Sequence[int] | None = None, watch: StreamCallback | None = None,
) -> list[list[int]]:  # fmt: skip
    """See `FrozenLM.generate`."""
    limits = max_new_tokens_per_row(mask, decoding)
    choose = make_sampler(decoding, seeds or [decoding.seed] * len(ids), ids.device)
    if uses_hf_generate(lm, slots, decoding):
        rows = hf_generate(lm, ids, mask, slots, decoding, choose, limits=limits, eos=eos, pad=pad, watch=watch)
    elif decoding.beams > 1:
        wanted = None if watch is None else watch.is_wanted
        rows = beam_search(lm, ids, mask, slots, decoding, limits=limits, eos=eos, wanted=wanted)
    else:
        rows = decode(lm, ids, mask, slots, choose, limits=limits, eos=eos, watch=watch)
    return [truncate_at_eos(eos, tokens) for tokens in rows]


def uses_hf_generate(lm: FrozenLM, slots: Sequence[Slots], decoding: Decoding) -> bool:
    """Whether transformers' own loop generates: it knows every LM and rule but the old one for beams."""
    return decoding.changes_scores or (lm.split_disabled_reason(slots) is not None and not decoding.counts_prompt)


def truncate_at_eos(eos: int, tokens: list[int]) -> list[int]:
    """A row up to and without its end token."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def max_new_tokens_per_row(mask: Tensor, decoding: Decoding) -> Tensor:
    """How many new tokens (B,) each row may have. A prompt that fills `max_length` still gets one, as in the paper."""
    if decoding.max_length is None:
        return mask.new_full((len(mask),), decoding.max_new_tokens)
    return (decoding.max_length - mask.sum(-1)).clamp_min(1)


def decode(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], choose: Sampler, *, limits: Tensor, eos: int,
    watch: StreamCallback | None = None,
) -> list[list[int]]:  # fmt: skip
    """Greedy decoding or sampling: new tokens of each row, the end token included."""
    most = limits.tolist()
    rows = [
        GeneratedSequence(limit, eos, choose, number, None if watch is None else partial(watch.on_token, number))
        for number, limit in enumerate(most)
    ]
    going = ContinuousBatch(DecodeState(lm, ids, mask, slots, max(most)), rows)
    while going.step():
        pass
    return [row.tokens for row in rows]


def hf_generate(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], decoding: Decoding, choose: Sampler, *,
    limits: Tensor, eos: int, pad: int, watch: StreamCallback | None = None,
) -> list[list[int]]:  # fmt: skip
    """transformers' `generate`: new tokens of each row, the end token and padding behind it included."""
    from transformers import DynamicCache

    beams = decoding.beams
    splice = Splice([_repeat_slot(slot, beams) for slot in slots], mask.repeat_interleave(beams, 0))
    ids, mask, _ = prepend_slot_columns(ids, mask, splice.width)
    # An unwindowed cache: a sliding-window cache would drop the slots, which are exempt from the window.
    cache = {} if splice.sees_text else {"past_key_values": DynamicCache()}
    with lm.hooks_active(splice, None):
        return run_hf_generate(
            lm.model, {"input_ids": ids, "attention_mask": mask, **cache}, decoding, choose, limits=limits, eos=eos,
            pad=pad, width=ids.shape[1], watch=watch, use_cache=not splice.sees_text,
        )  # fmt: skip


def run_hf_generate(
    model: Any, inputs: Mapping[str, Any], decoding: Decoding, choose: Sampler, *, limits: Tensor, eos: int, pad: int,
    width: int, watch: StreamCallback | None = None, **settings: Any,
) -> list[list[int]]:  # fmt: skip
    """`model.generate`, row i ending after `limits[i]` new tokens, which come behind the first `width` columns."""
    from transformers import GenerationConfig

    if decoding.counts_prompt:
        raise UserError(
            "decode.length_normalization: `total` is for beams of an LM with slots, without `min_new_tokens` and "
            "`repetition_penalty`; choose `answer`"
        )
    search = {"length_penalty": decoding.length_penalty} if decoding.beams > 1 else {}
    config = GenerationConfig(
        max_new_tokens=int(limits.max()), num_beams=decoding.beams, do_sample=False, eos_token_id=eos, pad_token_id=pad,
        **search, **settings,
    )  # fmt: skip

    def draw(_: Tensor, logits: Tensor) -> Tensor:
        """Leaves the chosen token alone possible: a row's draws are its own in this loop, too."""
        chosen = choose(logits, range(len(logits)))
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def restrained(given: Tensor, scores: Tensor) -> Tensor:
        """By the answer alone: what a row's prompt or its padding holds is not counted."""
        said = given[:, width:]
        before = scores.gather(1, said)
        after = torch.where(before < 0, before * decoding.repetition_penalty, before / decoding.repetition_penalty)
        scores = scores.scatter(1, said, after)
        if said.shape[1] < decoding.min_new_tokens:
            scores[:, eos] = -torch.inf
        return scores

    def full(given: Tensor, _: Any) -> Tensor:
        done = given.shape[1] - width >= limits
        if watch is not None:
            done |= torch.tensor([not watch.is_wanted(row) for row in range(len(limits))], device=done.device)
        return done.repeat_interleave(len(given) // len(limits))

    processors = [restrained] * decoding.changes_scores + [draw] * decoding.sample
    sequences = model.generate(
        **inputs, generation_config=config, stopping_criteria=[full], logits_processor=processors
    )
    return [row[:limit] for row, limit in zip(sequences[:, width:].tolist(), limits.tolist(), strict=True)]


def _repeat_slot(slot: Slots, times: int) -> Slots:
    states = {
        layer: tensor if tensor.shape[0] == 1 else tensor.repeat_interleave(times, 0)
        for layer, tensor in slot.states.items()
    }
    return replace(slot, states=states, present=slot.present.repeat_interleave(times, 0))
