"""How likely a model finds answers: candidates to be ranked, and the tokens of what it says itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perceptune.lm.generation.generate import max_new_tokens_per_row
from perceptune.lm.generation.logprobs import TokenScore, continuation_logprobs, continuation_scores
from perceptune.types import Decoding, Sample

if TYPE_CHECKING:
    from perceptune.models.slot_model import SlotModel


def rank(
    model: SlotModel, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, normalize: bool,
    batch_size: int,
) -> list[list[float]]:  # fmt: skip
    """See `AdaptedModel.rank`."""
    return [
        [_sum(scores) / (len(scores) if normalize else 1) for scores in own]
        for own in _scored(model, samples, candidates, batch_size)
    ]


def loglikelihood(
    model: SlotModel, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, batch_size: int
) -> list[list[tuple[float, bool]]]:
    """See `AdaptedModel.loglikelihood`."""
    return [
        [(_sum(scores), all(token.is_greedy for token in scores)) for scores in own]
        for own in _scored(model, samples, candidates, batch_size)
    ]


def _sum(scores: Sequence[TokenScore]) -> float:
    return sum(token.logprob for token in scores)


def _scored(
    model: SlotModel, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], batch_size: int
) -> Iterator[list[list[TokenScore]]]:
    """Yield the tokens' scores of each sample's candidates."""
    for part in _portions([len(own) for own in candidates], batch_size):
        rows = list(samples[part])
        targets = [
            [_continuation(model, sample, one) for one in own]
            for sample, own in zip(rows, candidates[part], strict=True)
        ]
        yield from continuation_scores(model.lm, *model.prompts(rows), targets)


def token_logprobs(
    model: SlotModel, samples: Sequence[Sample], decoding: Decoding
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """See `AdaptedModel.token_logprobs`."""
    ids, mask, slots = model.prompts(samples)
    rows = model.generate_tokens(ids, mask, slots, samples, decoding)
    eos = model.text.eos
    ended = [
        row + [eos] * (len(row) < limit)
        for row, limit in zip(rows, max_new_tokens_per_row(mask, decoding).tolist(), strict=True)
    ]
    found = continuation_logprobs(model.lm, ids, mask, slots, [[row] for row in ended])
    return [
        [(model.text.token(token), value) for token, value in zip(row, values, strict=True)]
        for row, [values] in zip(ended, found, strict=True)
    ]


def _continuation(model: SlotModel, sample: Sample, answer: str) -> list[int]:
    model.text.training_ids(sample, answer)  # says if both together are too long
    return model.text.target_ids(answer)


def _portions(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive parts whose sizes add up to `limit` at most, but for single larger ones."""
    start, total = 0, 0
    for end, size in enumerate(sizes):
        if end > start and total + size > limit:
            yield slice(start, end)
            start, total = end, 0
        total += size
    if len(sizes) > start:
        yield slice(start, len(sizes))
