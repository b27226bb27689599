"""Generation: greedy decoding, sampling and beam search in our own loops, with the tokens of transformers' `generate`.

transformers' own loop (`hf_generate`) runs LMs that cannot use split execution and scores that depend on the answer
so far. Decoding is a continuous batch: each row chooses a token, finished rows leave, and others may join. A row's
answer depends neither on the other rows nor on when it joined (float32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.beam_search import beam_search
from perceptune.lm.generation.decode_state import GROWTH, DecodeState
from perceptune.lm.generation.ensemble import EnsemblePrompt, start_state
from perceptune.lm.generation.hf_generate import hf_generate
from perceptune.lm.generation.sampling import Sampler, make_sampler, truncate_at_eos
from perceptune.types import Decoding, GenerationRequest, Slots
from perceptune.utils.tensors import move

LEAVE_AT = 0.75  # finished rows are removed once at most this fraction of the batch is active


class TokenConstraint(Protocol):
    """What an answer may contain."""

    def mask(self, logits: Tensor) -> Tensor:
        """Return logits (vocab,) with -inf for tokens that may not follow."""

    def accept(self, token: int) -> None:
        """Go on after a token."""

    def reset(self) -> None:
        """Go back to the start of the answer."""


@dataclass(eq=False)
class GeneratedSequence:
    """Answer under generation. `on_token` receives each token, the end token included; False stops the row."""

    max_new_tokens: int  # tokens
    eos: int
    sampler: Sampler
    index: int = 0  # the row's number in `sampler`
    on_token: Callable[[int], bool] | None = None
    on_end: Callable[[DecodeState, int], None] | None = None  # receives the state and the row's place in it
    on_logits: Callable[[Tensor, int], None] | None = (
        None  # receives the logits (1, vocab) of each token, and the token
    )
    constraint: TokenConstraint | None = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def append(self, token: int) -> None:
        """Append the next token."""
        self.tokens.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        said_to_end = self.on_token is not None and not self.on_token(token)
        self.ended = said_to_end or token == self.eos or len(self.tokens) >= self.max_new_tokens


class ContinuousBatch:
    """Active rows of one LM; `rows` are those of `state`, in its order."""

    def __init__(self, state: DecodeState, rows: Sequence[GeneratedSequence]) -> None:
        self.state, self.rows = state, list(rows)

    @property
    def num_active(self) -> int:
        """Number of rows that have not ended."""
        return sum(not row.ended for row in self.rows)

    def step(self) -> bool:
        """Generate one token for every row; return False if no row is active."""
        tokens = self._next_tokens()
        for place, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            if not row.ended:
                if row.on_logits is not None:
                    row.on_logits(self.state.logits[place : place + 1], token)
                row.append(token)
                if row.ended and row.on_end is not None:
                    row.on_end(self.state, place)
        alive = [place for place, row in enumerate(self.rows) if not row.ended]
        if not alive:
            return False
        if len(alive) <= LEAVE_AT * len(self.rows):
            tokens = tokens[self._select_rows(alive)]
        elif len(alive) < len(self.rows):
            self.state.hold(torch.tensor([row.ended for row in self.rows]))
        self.state.decode_step(tokens)
        return True

    def join(self, others: Sequence[ContinuousBatch]) -> None:
        """Append the rows of other batches. Raises the errors of `DecodeState.merge`."""
        parts = [self, *others]
        for part in parts:
            part._select_rows([place for place, row in enumerate(part.rows) if not row.ended])
        rows = [row for part in parts for row in part.rows]
        left = max((row.max_new_tokens - len(row.tokens) for row in rows), default=1)
        self.state.merge([other.state for other in others], min(left, GROWTH))
        self.rows = rows

    def _select_rows(self, places: list[int]) -> Tensor:
        index = move(torch.tensor(places, dtype=torch.long), self.state.rows.device)
        if len(places) < len(self.rows):
            self.state.select_rows(index)
            self.rows = [self.rows[place] for place in places]
        return index

    def _allowed(self) -> Tensor:
        """Return the logits (rows, vocab), without the tokens that a row's constraint does not allow."""
        logits = self.state.logits
        bound = [place for place, row in enumerate(self.rows) if row.constraint is not None and not row.ended]
        if not bound:
            return logits
        logits = logits.float().clone()
        for place in bound:
            constraint = self.rows[place].constraint
            assert constraint is not None
            logits[place] = constraint.mask(logits[place])
        return logits

    def _next_tokens(self) -> Tensor:
        """Choose the next token (rows,) of each row, in one call per sampler."""
        logits, ways = self._allowed(), dict.fromkeys(row.sampler for row in self.rows)
        if len(ways) == 1:
            return self.rows[0].sampler(logits, [row.index for row in self.rows])
        tokens = torch.zeros(len(self.rows), dtype=torch.long, device=logits.device)
        for choose in ways:
            places = [place for place, row in enumerate(self.rows) if row.sampler is choose]
            index = move(torch.tensor(places), logits.device)
            tokens[index] = choose(logits[index], [self.rows[place].index for place in places])
        return tokens


@torch.no_grad()
def generate(lm: FrozenLM, request: GenerationRequest) -> list[list[int]]:
    """Return the new tokens of each row's `request.num_return_sequences`, up to and without the end token."""
    is_ensemble = isinstance(request.prompt, EnsemblePrompt)
    if is_ensemble and request.decoding.changes_scores:
        raise UserError("decode.min_new_tokens and decode.repetition_penalty: not for an ensemble; leave them out")
    if not is_ensemble and uses_hf_generate(lm, request.prompt.slots, request.decoding):
        rows = hf_generate(lm, request)
    elif request.decoding.beams > 1:
        wanted = None if request.callback is None else request.callback.is_wanted
        rows = beam_search(
            lm, request.prompt, request.decoding, eos=request.eos, wanted=wanted, n_best=request.num_return_sequences
        )
    else:
        rows = decode(lm, request)
    return [truncate_at_eos(request.eos, tokens) for tokens in rows]


def uses_hf_generate(lm: FrozenLM, slots: Sequence[Slots], decoding: Decoding) -> bool:
    """Return whether transformers' own loop generates: it supports every LM and rule except the old one for beams."""
    return decoding.changes_scores or (lm.why_reference_path(slots) is not None and not decoding.counts_prompt)


def decode(lm: FrozenLM, request: GenerationRequest) -> list[list[int]]:
    """Run greedy decoding or sampling; return the new tokens of each row, the end token included.

    The sequences of a prompt share its prefill. `callback` numbers them all from 0.
    """
    sampler, each = make_sampler(request, lm.device), request.n_sampled
    limits: list[int] = request.decoding.max_new_tokens_per_row(request.prompt.mask).repeat_interleave(each).tolist()
    on_token = None if request.callback is None else request.callback.on_token
    rows = [
        GeneratedSequence(limit, request.eos, sampler, row, on_token and partial(on_token, row))
        for row, limit in enumerate(limits)
    ]
    state = start_state(lm, request.prompt, max(limits))
    assert isinstance(state, DecodeState), "transformers' loop runs LMs without split execution"
    if each > 1:
        state.select_rows(state.rows.repeat_interleave(each))
    batch = ContinuousBatch(state, rows)
    while batch.step():
        pass
    return [row.tokens for row in rows]
