"""The slow, obvious ways to generate, which the fast ones must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.generate import generate
from perceptune.lm.slot_hooks import Splice
from perceptune.types import Decoding, GenerationRequest, Prompt, Slots
from perceptune.utils.tensors import prepend_slot_columns
from rows import Row


def ending_some(answers: list[list[int]]) -> int:
    """A token that would end some rows before others; -1, which ends none, if all rows say the same."""
    for token in {token for answer in answers for token in answer}:
        if len({answer.index(token) if token in answer else -1 for answer in answers}) > 1:
            return token
    return -1


def uncached(
    r: Row, ids: torch.Tensor, mask: torch.Tensor, slots: list[Slots], steps: int, eos: int = 2
) -> list[list[int]]:
    """Greedy decoding that runs the whole text again for each token: the slow, obvious way."""
    rows: list[list[int]] = [[] for _ in ids]
    for _ in range(steps):
        best = r.lm(ids, mask, slots)[:, -1].argmax(-1)
        for tokens, token in zip(rows, best.tolist(), strict=True):
            tokens.append(token)
        ids = torch.cat([ids, best[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(best)[:, None]], 1)
    return [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in rows]


@torch.no_grad()
def transformers_own(
    r: Row, ids: torch.Tensor, mask: torch.Tensor, slots: list[Slots], decoding: Decoding, eos: int
) -> list[list[int]]:
    """What transformers' own loop writes: its cache, its beams, its draws."""
    width = sum(slot.width for slot in slots)
    times = decoding.beams
    several = [
        replace(
            slot,
            present=slot.present.repeat_interleave(times, 0),
            states={k: t if len(t) == 1 else t.repeat_interleave(times, 0) for k, t in slot.states.items()},
        )
        for slot in slots
    ]
    ids, seen, _ = prepend_slot_columns(ids, mask, width)
    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.sample else {}
    search = {"length_penalty": decoding.length_penalty} if times > 1 else {}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, num_beams=times, do_sample=decoding.sample, eos_token_id=eos,
        pad_token_id=0, **drawn, **search,
    )  # fmt: skip
    with r.lm.hooks_active(Splice(several, mask.repeat_interleave(times, 0)), None):
        rows = r.lm.model.generate(
            input_ids=ids, attention_mask=seen, generation_config=config, past_key_values=DynamicCache()
        )
    answers = rows[:, ids.shape[1] :].tolist()
    return [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in answers]


@torch.no_grad()
def beams_by_total_length(
    r: Row, ids: torch.Tensor, mask: torch.Tensor, slots: list[Slots], decoding: Decoding, eos: int, limit: int
) -> list[int]:
    """`old_beam_search` of one row, its whole text run for each token."""

    def logits(text: list[int]) -> torch.Tensor:
        seen = torch.cat([mask, mask.new_ones(1, len(text) - ids.shape[1])], 1)
        return r.lm(torch.tensor([text]), seen, slots, use_reference_path=True)[0, -1]

    return old_beam_search(
        ids[0].tolist(), logits, beams=decoding.beams, penalty=decoding.length_penalty, eos=eos, limit=limit
    )


def old_beam_search(
    prompt: list[int], logits_after: Callable[[list[int]], torch.Tensor], *, beams: int, penalty: float = 1.0, eos: int,
    limit: int,
) -> list[int]:  # fmt: skip
    """The answer as transformers 4.20 to 4.24 search it: plain lists of beams.

    A beam that ends is divided by the length of all its ids without the end token, and so is the best candidate when it
    is asked whether anything can still win; beams that are open at the limit count, too.
    """
    open_: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []

    def finish(total: float, said: list[int]) -> None:
        finished.append((total / (len(prompt) + len(said)) ** penalty, said))
        finished.sort(key=lambda one: one[0], reverse=True)
        del finished[beams:]

    for _ in range(limit):
        candidates = []
        for total, said in open_:
            best, tokens = logits_after(prompt + said).float().log_softmax(-1).topk(2 * beams)
            candidates += [(total + p, said, token) for p, token in zip(best.tolist(), tokens.tolist(), strict=True)]
        candidates = sorted(candidates, key=lambda one: one[0], reverse=True)[: 2 * beams]
        for total, said, token in candidates[:beams]:
            if token == eos:
                finish(total, said)
        length = len(prompt) + len(open_[0][1])
        open_ = [(total, [*said, token]) for total, said, token in candidates if token != eos][:beams]
        if len(finished) == beams and finished[-1][0] >= candidates[0][0] / length**penalty:
            return finished[0][1]
    for total, said in open_:
        finish(total, said)
    return finished[0][1]


def generated(
    lm: FrozenLM, ids: torch.Tensor, mask: torch.Tensor, slots: Sequence[Slots], decoding: Decoding, **keys: Any
) -> list[list[int]]:
    """What `generate` gives; `keys` are others of a request."""
    return generate(lm, GenerationRequest(Prompt(ids, mask, slots), decoding, **keys))
