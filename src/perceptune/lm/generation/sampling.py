"""Choice of the next tokens from logits, and the end of a row."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceptune.types import GenerationRequest


def truncate_at_eos(eos: int, tokens: list[int]) -> list[int]:
    """Return a row's tokens before its end token."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


Sampler = Callable[[Tensor, Sequence[int]], Tensor]


def greedy(logits: Tensor, _: Sequence[int]) -> Tensor:
    """Choose the most likely token: the `Sampler` of greedy decoding."""
    return logits.float().argmax(-1)


def make_sampler(request: GenerationRequest, device: torch.device) -> Sampler:
    """Return (logits (n, vocab), the rows' numbers) -> next tokens (n,); row i draws with the request's i-th seed.

    With several sequences of a prompt each of them is a row.

    A row's draws depend only on its seed and its logits, so a row draws the same in any batch: the tokens of
    transformers' `generate` for that row after `torch.manual_seed(seed)`.
    """
    decoding = request.decoding
    if not decoding.sample:
        return greedy
    seeds = request.seeds or decoding.seeds(len(request.prompt.mask), request.n_sampled)
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
        # The draw of `torch.multinomial` for each row on its own, with one division and one search for all rows.
        noise = torch.empty_like(scores)
        for i, row in enumerate(rows):
            noise[i].exponential_(1, generator=own[row])
        return (scores.softmax(-1) / noise).argmax(-1)

    return draw
