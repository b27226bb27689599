"""Beam search on our own cache, with the tokens of transformers' `generate` for each row on its own.

A beam's score is the sum of its tokens' log-probabilities; that of a finished one is divided by its length to the
power `length_penalty`. A row is done when its best open beam, at its present length, cannot beat its worst finished
one (transformers' `early_stopping=False`). The prompt's keys and values are computed once per row and never moved:
only those of the new tokens follow the beams.

With `length_normalization: total` a row is searched as transformers 4.20 to 4.24 search it on its own: the length is
that of prompt and answer without the end token, the search ends when the best candidate can no longer win, and beams
that are open at the limit count, whatever their rank.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.ensemble import start_state
from perceptune.types import Decoding, Prompt
from perceptune.utils.tensors import move

NEVER = -1e9  # score of an empty place


@dataclass
class _Beams:
    """k open and k finished beams of n rows, best first; tokens from column `length` on are not written yet."""

    scores: Tensor  # (n, k)
    tokens: Tensor  # (n, k, room)
    finished: Tensor  # (n, k) scores
    texts: Tensor  # (n, k, room) the finished beams' tokens
    filled: Tensor  # (n, k) bool: whether there is a finished beam yet

    def rows(self, index: Tensor) -> _Beams:
        return _Beams(*(getattr(self, field.name)[index] for field in fields(self)))

    def finish(self, scores: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Insert the beams that count (n, m) among the finished ones if their scores are high enough."""
        merged, order = torch.cat([self.finished, scores + ~counts * NEVER], 1).topk(self.finished.shape[1])
        self.finished, self.texts = merged, _pick(torch.cat([self.texts, tokens], 1), order)
        self.filled = torch.cat([self.filled, counts], 1).gather(1, order)

    def may_improve(self, best: Tensor) -> Tensor:
        """Return (n,) bool: whether a beam that ends with the score `best` (n, 1) would be among the finished ones."""
        worst = torch.where(self.filled, self.finished.min(1, keepdim=True).values, NEVER)
        return (best > worst).any(1)


@dataclass
class _Rule:
    """Divisor of scores: a length to the power `penalty`."""

    penalty: float
    prompts: Tensor | None  # (n, 1) prompt lengths, if they count

    def __call__(self, length: int) -> Tensor | float:
        """Return the divisor for a beam with `length` tokens of its own."""
        return (length if self.prompts is None else length + self.prompts) ** self.penalty

    def rows(self, index: Tensor) -> _Rule:
        return self if self.prompts is None else _Rule(self.penalty, self.prompts[index])


def beam_search(
    lm: FrozenLM, prompt: Prompt, decoding: Decoding, *, eos: int, wanted: Callable[[int], bool] | None = None,
    n_best: int = 1,
) -> list[list[int]]:  # fmt: skip
    """Return the new tokens of each row's `n_best` best beams, one after another, end tokens included.

    A row is abandoned once `wanted` is False for it; its output is then undefined.
    """
    steps = beam_steps(lm, prompt, decoding, eos=eos, wanted=wanted, n_best=n_best)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def beam_steps(
    lm: FrozenLM, prompt: Prompt, decoding: Decoding, *, eos: int, wanted: Callable[[int], bool] | None = None,
    n_best: int = 1,
) -> Generator[None, None, list[list[int]]]:  # fmt: skip
    """Run `beam_search` as a generator that yields after each token."""
    ids, mask, limits = prompt.ids, prompt.mask, decoding.max_new_tokens_per_row(prompt.mask)
    n, most, beams = len(ids), limits.tolist(), decoding.beams
    room = max(most)
    rule = _Rule(decoding.length_penalty, mask.sum(-1, keepdim=True) if decoding.counts_prompt else None)
    state = start_state(lm, prompt, room)
    held = _none_yet(n, beams, room, ids.device)
    state.select_rows(torch.arange(n, device=ids.device).repeat_interleave(beams))
    best: dict[int, Tensor] = {}  # (n_best, room) of the rows that have ended, read when all have
    going = list(range(n))
    for length in range(1, room + 1):
        parents, open_ = _step(held, state.logits, length, limits, rule, eos)
        goes_on = open_.tolist()  # the only synchronisation with the device in a step
        if wanted is not None:
            goes_on = [yes and wanted(row) for yes, row in zip(goes_on, going, strict=True)]
        best |= {row: held.texts[place, :n_best] for place, row in enumerate(going) if not goes_on[place]}
        if not any(goes_on):
            break
        first = torch.arange(len(going), device=ids.device)[:, None] * beams
        state.reorder((first + parents).flatten())
        if not all(goes_on):
            places = [place for place, yes in enumerate(goes_on) if yes]
            stay = move(torch.tensor(places), ids.device)
            state.select_rows((first[stay] + torch.arange(beams, device=ids.device)).flatten())
            going, held, rule = [going[place] for place in places], held.rows(stay), rule.rows(stay)
            limits = limits[stay]
        state.decode_step(held.tokens[:, :, length - 1].flatten())
        yield
    return _read(best, most, eos, n_best)


def _read(best: Mapping[int, Tensor], most: Sequence[int], eos: int, n_best: int) -> list[list[int]]:
    """Read the answers, `n_best` per row: up to the end token, or up to the row's limit."""
    found = dict(zip(best, torch.stack(list(best.values())).tolist(), strict=True)) if best else {}
    answers = [(one, limit) for row, limit in enumerate(most) for one in found.get(row, [[]] * n_best)]
    return [(one[: one.index(eos) + 1] if eos in one else one)[:limit] for one, limit in answers]


def _none_yet(rows: int, beams: int, room: int, device: torch.device) -> _Beams:
    """Return equal beams of which only the first one counts, as otherwise all would generate the same."""
    scores = torch.full((rows, beams), NEVER, device=device)
    finished, filled = scores.clone(), torch.zeros_like(scores, dtype=torch.bool)
    scores[:, 0] = 0.0
    tokens = torch.zeros(rows, beams, room, dtype=torch.long, device=device)
    return _Beams(scores, tokens, finished, tokens.clone(), filled)


def _step(held: _Beams, logits: Tensor, length: int, limits: Tensor, rule: _Rule, eos: int) -> tuple[Tensor, Tensor]:
    """Extend every beam by one token; return the open beams' parents (n, k) and which rows (n,) continue."""
    n, k = held.scores.shape
    chances = logits.float().log_softmax(-1).view(n, k, -1) + held.scores[..., None]
    # Each beam has one end token, so of 2k continuations at least k stay open.
    top, place = chances.view(n, -1).topk(2 * k)
    parents, token = place // logits.shape[-1], place % logits.shape[-1]
    tokens = _pick(held.tokens, parents)
    tokens[:, :, length - 1] = token
    full = (limits == length)[:, None]
    ends = token == eos
    if rule.prompts is None:
        ends |= full

    counts = ends.clone()
    counts[:, k:] = False  # a beam that ends must be among the best k to count
    before = length - (rule.prompts is not None)  # the old rule excludes the end token
    held.finish(top / rule(before), tokens, counts)
    held.scores, order = (top + ends * NEVER).topk(k)
    held.tokens = _pick(tokens, order)
    if rule.prompts is None:
        open_ = held.may_improve(held.scores[:, :1] / rule(length))
    else:
        open_ = held.may_improve(top[:, :1] / rule(before))
        held.finish(held.scores / rule(length), held.tokens, (full & open_[:, None]).expand(n, k))
    return parents.gather(1, order), open_ & (limits > length)


def _pick(tokens: Tensor, beams: Tensor) -> Tensor:
    """Select the beams (n, m) of each row: (n, k, room) -> (n, m, room)."""
    return tokens.gather(1, beams[..., None].expand(-1, -1, tokens.shape[-1]))
