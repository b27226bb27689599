"""How likely given continuations of a prompt are: the choices of a question, or the tokens of an answer.

The continuations of one prompt share its keys and values, which are computed once. What cannot be split runs one whole
forward pass over prompts and continuations, as training does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.padding import last_columns, pad_left
from perceptune.types import Sample, Slots
from perceptune.utils.devices import move

if TYPE_CHECKING:
    from perceptune.lm.frozen_lm import FrozenLM


def choices_of(sample: Sample) -> list[str]:
    """The key `choices` of a sample: at least two different texts. Raises `UserError`."""
    given = sample.meta.get("choices")
    if not isinstance(given, list | tuple):
        raise UserError(f"sample `{sample.id}` has no list `choices` to be ranked")
    choices = [choice for choice in given if isinstance(choice, str) and choice.strip()]
    if len(choices) < len(given):
        raise UserError(f"sample `{sample.id}`: `choices` holds what is no text")
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(f"sample `{sample.id}`: `choices` must be at least two different texts")
    return choices


class TokenScore(NamedTuple):
    """How likely a token is after what stands before it, and whether no other one is likelier."""

    logprob: float
    is_greedy: bool


def continuation_logprobs(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[list[float]]]:  # fmt: skip
    """Return the log-probability of each token of `continuation_scores`."""
    scores = continuation_scores(lm, ids, mask, slots, continuations)
    return [[[token.logprob for token in one] for one in own] for own in scores]


def continuation_scores(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[list[TokenScore]]]:  # fmt: skip
    """Score each token of each row's continuations; every continuation has at least one token.

    `ids`, `mask` (B, T) are the prompts, padded on the left. `continuations[row][number]` are token ids.
    """
    rows = [row for row, own in enumerate(continuations) for _ in own]
    tokens = [list(one) for own in continuations for one in own]
    if not rows:
        return [[] for _ in continuations]
    run = _plainly if lm.split_disabled_reason(slots) is not None else _one_by_one
    found = iter(run(lm, ids, mask, slots, move(torch.tensor(rows), ids.device), tokens))
    return [[next(found) for _ in own] for own in continuations]


def _one_by_one(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], rows: Tensor, tokens: Sequence[Sequence[int]]
) -> list[list[TokenScore]]:
    """Tokens are fed to the prompts' cache; those that have ended leave."""
    room = max(map(len, tokens))
    state = DecodeState(lm, ids, mask, slots, room)
    going = list(range(len(tokens)))
    order: list[int] = []  # whose token each value in `values` is
    values: list[Tensor] = []
    state.select_rows(rows)
    for place in range(room):
        now = move(torch.tensor([tokens[i][place] for i in going]), ids.device)
        values.append(_score(state.logits, now))
        order += going
        alive = [at for at, i in enumerate(going) if len(tokens[i]) > place + 1]
        if not alive:
            break
        if len(alive) < len(going):
            index = move(torch.tensor(alive), ids.device)
            state.select_rows(index)
            now, going = now[index], [going[at] for at in alive]
        state.decode_step(now)
    found: list[list[TokenScore]] = [[] for _ in tokens]
    for i, score in zip(order, _read(torch.cat(values)), strict=True):
        found[i].append(score)
    return found


def _plainly(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], rows: Tensor, tokens: Sequence[Sequence[int]]
) -> list[list[TokenScore]]:
    """One forward pass over everything."""
    given, seen = ids.tolist(), mask.tolist()
    prompts = [
        [token for token, is_text in zip(given[row], seen[row], strict=True) if is_text] for row in rows.tolist()
    ]
    pad = given[0][0]  # hidden by the mask, whatever it is
    whole, shown = pad_left([prompt + list(own) for prompt, own in zip(prompts, tokens, strict=True)], pad)
    lengths = [len(own) for own in tokens]
    aims = last_columns(whole.shape[1], lengths)
    keep = torch.nn.functional.pad(aims[:, 1:], (0, 1))
    device = ids.device
    logits = lm(move(whole, device), move(shown, device), [slot.of_rows(rows) for slot in slots], keep=keep)
    scores = _read(_score(logits, move(whole[aims], device)))
    return [list(islice(scores, length)) for length in lengths]


def _score(logits: Tensor, tokens: Tensor) -> Tensor:
    """Score one token (N,) for each row of logits (N, vocab): (N, 2), its log-probability and 1 where it is greedy."""
    logprobs = logits.float().log_softmax(-1)
    values = logprobs.gather(1, tokens[:, None])[:, 0]
    return torch.stack([values, (logprobs.argmax(-1) == tokens).float()], 1)


def _read(scores: Tensor) -> Iterator[TokenScore]:
    """Wait for the device once and return its scores (N, 2) one by one."""
    return (TokenScore(logprob, bool(is_greedy)) for logprob, is_greedy in scores.tolist())
