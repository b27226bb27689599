"""Log-probabilities of given continuations of a prompt: the choices of a question, or the tokens of an answer.

The continuations of a prompt share its keys and values, which are computed once, and those with a common start that
start. LMs that cannot use split execution run one forward pass over prompts and continuations, as in training.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceptune.lm.frozen_lm import FrozenLM, LayerStates
from perceptune.lm.generation.decode_state import DecodeState, LowerDecodeState
from perceptune.lm.generation.ensemble import EnsemblePrompt, start_state
from perceptune.lm.generation.uncached import UncachedState
from perceptune.types import Prompt
from perceptune.utils.tensors import last_columns, move, pad_left

_MOST_TEXTS = 64  # prompts whose states are kept


class TokenScore(NamedTuple):
    """Log-probability of a token given the preceding ones, and whether it is the most likely one."""

    logprob: float
    is_greedy: bool


class TokenDetail(NamedTuple):
    """Log-probability of a generated token, and the likeliest tokens in its place with theirs, best first."""

    logprob: float
    top: list[tuple[int, float]]


class _Step(NamedTuple):
    """One place of all continuations: what is scored there, then the rows that go on, each with its next token."""

    scored: list[int]  # continuations with a token here
    rows: list[int]  # the row of each of them
    tokens: list[int]
    kept: list[int]  # rows of the next step; a row that occurs again is repeated
    following: list[int]  # the token of each


class SharedTexts:
    """States of prompts and their continuations at the input of `layer`, below which there is only text.

    They are computed once for all rows of equal texts, as of one question with the same choices for each medium.
    """

    def __init__(self, lm: FrozenLM, layer: int) -> None:
        self._lm, self.layer = lm, layer
        self._found: dict[Any, tuple[Tensor, list[Tensor]]] = {}

    def of(self, text: Sequence[int], own: Sequence[Sequence[int]]) -> tuple[Tensor, list[Tensor]]:
        """Return the prompt's states (1, T, d), and those of the rows of each step (n, 1, d)."""
        key = (tuple(text), tuple(map(tuple, own)))
        if key not in self._found:
            if len(self._found) == _MOST_TEXTS:
                self._found.pop(next(iter(self._found)))
            self._found[key] = self._compute(text, own)
        return self._found[key]

    def _compute(self, text: Sequence[int], own: Sequence[Sequence[int]]) -> tuple[Tensor, list[Tensor]]:
        ids, mask = (move(given, self._lm.device) for given in pad_left([text], 0))
        state = LowerDecodeState(self._lm, Prompt(ids, mask), max(map(len, own)), self.layer)
        prompt, found = state.logits, list[Tensor]()
        for step in _steps([0] * len(own), own):
            if step.kept:
                found.append(_advance(state, step))
        return prompt, found


def continuation_scores(
    lm: FrozenLM, prompt: Prompt, continuations: Sequence[Sequence[Sequence[int]]], *,
    shared: SharedTexts | None = None,
) -> list[list[list[TokenScore]]]:  # fmt: skip
    """Score each token of each row's continuations; every continuation has at least one token.

    `continuations[row][number]` are token ids. With `shared`, layers without media are not run again for equal texts.
    """
    rows = [row for row, own in enumerate(continuations) for _ in own]
    tokens = [list(one) for own in continuations for one in own]
    if not rows:
        return [[] for _ in continuations]
    if lm.why_reference_path(prompt.slots) is not None and not isinstance(prompt, EnsemblePrompt):
        scores = _score_at_once(lm, prompt, move(torch.tensor(rows), prompt.ids.device), tokens)
    else:
        below = []
        if shared is not None and all(continuations):
            below = [shared.of(text, own) for text, own in zip(_texts(prompt), continuations, strict=True)]
        scores = _score_token_by_token(lm, prompt, rows, tokens, shared.layer if shared else 0, below)
    found = iter(scores)
    return [[next(found) for _ in own] for own in continuations]


def _score_token_by_token(
    lm: FrozenLM, prompt: Prompt, rows: Sequence[int], tokens: Sequence[Sequence[int]], layer: int,
    below: Sequence[tuple[Tensor, list[Tensor]]],
) -> list[list[TokenScore]]:  # fmt: skip
    """Score one token after the other on the prompts' cache; `below` are each row's states at `layer`, if shared."""
    width = prompt.ids.shape[1]
    padded = [nn.functional.pad(states, (0, 0, width - states.shape[1], 0)) for states, _ in below]
    whole = (layer, torch.cat(padded)) if padded else None
    longest = max(map(len, tokens))
    state: DecodeState | UncachedState
    state = start_state(lm, prompt, longest) if whole is None else DecodeState(lm, prompt, longest, text_states=whole)
    order: list[int] = []  # the owner of each value in `values`
    values: list[Tensor] = []
    for place, step in enumerate(_steps(rows, tokens)):
        at, now = (move(torch.tensor(some), prompt.ids.device) for some in (step.rows, step.tokens))
        values.append(_score(state.logits, at, now))
        order += step.scored
        if step.kept:
            # The rows of a step are in the order of the prompts.
            given = [states[place] for _, states in below if place < len(states)]
            _advance(state, step, (layer, torch.cat(given)) if given else None)
    found: list[list[TokenScore]] = [[] for _ in tokens]
    for i, score in zip(order, _read(torch.cat(values)), strict=True):
        found[i].append(score)
    return found


def _steps(rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Iterator[_Step]:
    """Yield the steps of continuations of the prompts `rows`; those with a common start share a row until they part."""
    going, at = list(range(len(tokens))), list(rows)
    for place in range(max(map(len, tokens))):
        now = [tokens[i][place] for i in going]
        alive = [k for k, i in enumerate(going) if len(tokens[i]) > place + 1]
        starts = list(dict.fromkeys((at[k], now[k]) for k in alive))
        yield _Step(going, at, now, [row for row, _ in starts], [token for _, token in starts])
        numbers = {start: number for number, start in enumerate(starts)}
        going, at = [going[k] for k in alive], [numbers[at[k], now[k]] for k in alive]


def _advance(state: DecodeState | UncachedState, step: _Step, text_states: LayerStates | None = None) -> Tensor:
    """Continue the rows of a step by their next tokens."""
    device = state.rows.device
    if step.kept != list(range(len(state.rows))):
        state.select_rows(move(torch.tensor(step.kept), device))
    tokens = move(torch.tensor(step.following), device)
    if isinstance(state, UncachedState):
        return state.decode_step(tokens)
    return state.decode_step(tokens, text_states=text_states)


def _texts(prompt: Prompt) -> list[list[int]]:
    """Return the token ids of each prompt without padding."""
    both = torch.stack([prompt.ids, prompt.mask.to(prompt.ids.dtype)], 1).tolist()  # one synchronisation
    return [[token for token, is_text in zip(ids, mask, strict=True) if is_text] for ids, mask in both]


def _score_at_once(
    lm: FrozenLM, prompt: Prompt, rows: Tensor, tokens: Sequence[Sequence[int]]
) -> list[list[TokenScore]]:
    """Score all tokens in one forward pass."""
    texts = _texts(prompt)
    whole, shown = pad_left([texts[row] + list(own) for row, own in zip(rows.tolist(), tokens, strict=True)], 0)
    lengths = [len(own) for own in tokens]
    aims = last_columns(whole.shape[1], lengths)
    keep = torch.nn.functional.pad(aims[:, 1:], (0, 1))
    device = prompt.ids.device
    logits = lm(move(whole, device), move(shown, device), [slot.of_rows(rows) for slot in prompt.slots], keep=keep)
    scores = _read(_score(logits, torch.arange(len(logits), device=device), move(whole[aims], device)))
    return [list(islice(scores, length)) for length in lengths]


def describe_tokens(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenDetail]:
    """Return the details of tokens (N,) that were generated from logits (N, vocab), with `top` others for each."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
    if not top:
        return [TokenDetail(logprob, []) for logprob in own]
    best = logprobs.topk(top, -1)
    return [
        TokenDetail(logprob, list(zip(ids, values, strict=True)))
        for logprob, ids, values in zip(own, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def score_answer(lm: FrozenLM, prompt: Prompt, tokens: Sequence[int], top: int) -> list[TokenDetail]:
    """Return the details of the tokens of a finished answer to a prompt (1, T), as those of a search, in one pass."""
    given = torch.tensor([list(tokens)], device=prompt.ids.device)
    ids, mask = torch.cat([prompt.ids, given], 1), nn.functional.pad(prompt.mask, (0, len(tokens)), value=1)
    keep = last_columns(ids.shape[1], [len(tokens) + 1])
    keep[:, -1] = False  # what follows the answer is not asked for
    return describe_tokens(lm(ids, mask, prompt.slots, keep=keep), tokens, top)


def _score(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Score tokens (N,) by rows (N,) of logits (M, vocab): (N, 2), log-probability and 1 if it is the most likely."""
    logprobs = logits.float().log_softmax(-1)
    return torch.stack([logprobs[rows, tokens], (logprobs.argmax(-1)[rows] == tokens).float()], 1)


def _read(scores: Tensor) -> Iterator[TokenScore]:
    """Synchronise with the device once and yield its scores (N, 2) one by one."""
    return (TokenScore(logprob, bool(is_greedy)) for logprob, is_greedy in scores.tolist())
