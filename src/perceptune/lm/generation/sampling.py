"""How the next token is chosen: the likeliest one, or drawn by each row from random numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceptune.types import Decoding

Sampler = Callable[[Tensor, Sequence[int]], Tensor]


def greedy(logits: Tensor, _: Sequence[int]) -> Tensor:
    """The `Sampler` of greedy decoding."""
    return logits.float().argmax(-1)


def make_sampler(decoding: Decoding, seeds: Sequence[int], device: torch.device) -> Sampler:
    """(logits (n, vocab), the rows' numbers) -> the next token (n,) of each; row i draws with `seeds[i]`.

    A row's draws depend on nothing but its seed and its logits, so a batch draws what each row draws alone: the tokens
    of transformers' `generate` for that row after `torch.manual_seed(seed)`.
    """
    if not decoding.sample:
        return greedy
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    if decoding.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_p < 1.0:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    own = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def draw(logits: Tensor, rows: Sequence[int]) -> Tensor:
        scores = logits.float()
        for warper in warpers:
            scores = warper(None, scores)
        # What `torch.multinomial` does for each row alone, with one division and one search for all of them.
        noise = torch.empty_like(scores)
        for i, row in enumerate(rows):
            noise[i].exponential_(1, generator=own[row])
        return (scores.softmax(-1) / noise).argmax(-1)

    return draw
