"""Log-probabilities of given continuations of a prompt: the choices of a question, or the tokens of an answer.

The continuations of a prompt share its keys and values, which are computed once. LMs that cannot use split execution
run one forward pass over prompts and continuations, as in training.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.types import Prompt
from perceptune.utils.tensors import last_columns, move, pad_left


class TokenScore(NamedTuple):
    """Log-probability of a token given the preceding ones, and whether it is the most likely one."""

    logprob: float
    is_greedy: bool


def continuation_scores(
    lm: FrozenLM, prompt: Prompt, continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[list[TokenScore]]]:
    """Score each token of each row's continuations; every continuation has at least one token.

    `continuations[row][number]` are token ids.
    """
    rows = [row for row, own in enumerate(continuations) for _ in own]
    tokens = [list(one) for own in continuations for one in own]
    if not rows:
        return [[] for _ in continuations]
    run = _score_at_once if lm.why_reference_path(prompt.slots) is not None else _score_token_by_token
    found = iter(run(lm, prompt, move(torch.tensor(rows), prompt.ids.device), tokens))
    return [[next(found) for _ in own] for own in continuations]


def _score_token_by_token(
    lm: FrozenLM, prompt: Prompt, rows: Tensor, tokens: Sequence[Sequence[int]]
) -> list[list[TokenScore]]:
    """Score one token after the other on the prompts' cache; continuations that have ended leave the batch."""
    room = max(map(len, tokens))
    state, device = DecodeState(lm, prompt, room), prompt.ids.device
    going = list(range(len(tokens)))
    order: list[int] = []  # the owner of each value in `values`
    values: list[Tensor] = []
    state.select_rows(rows)
    for place in range(room):
        now = move(torch.tensor([tokens[i][place] for i in going]), device)
        values.append(_score(state.logits, now))
        order += going
        alive = [at for at, i in enumerate(going) if len(tokens[i]) > place + 1]
        if not alive:
            break
        if len(alive) < len(going):
            index = move(torch.tensor(alive), device)
            state.select_rows(index)
            now, going = now[index], [going[at] for at in alive]
        state.decode_step(now)
    found: list[list[TokenScore]] = [[] for _ in tokens]
    for i, score in zip(order, _read(torch.cat(values)), strict=True):
        found[i].append(score)
    return found


def _score_at_once(
    lm: FrozenLM, prompt: Prompt, rows: Tensor, tokens: Sequence[Sequence[int]]
) -> list[list[TokenScore]]:
    """Score all tokens in one forward pass."""
    given, seen = prompt.ids.tolist(), prompt.mask.tolist()
    prompts = [
        [token for token, is_text in zip(given[row], seen[row], strict=True) if is_text] for row in rows.tolist()
    ]
    pad = given[0][0]  # any id: the mask hides it
    whole, shown = pad_left([prompt + list(own) for prompt, own in zip(prompts, tokens, strict=True)], pad)
    lengths = [len(own) for own in tokens]
    aims = last_columns(whole.shape[1], lengths)
    keep = torch.nn.functional.pad(aims[:, 1:], (0, 1))
    device = prompt.ids.device
    logits = lm(move(whole, device), move(shown, device), [slot.of_rows(rows) for slot in prompt.slots], keep=keep)
    scores = _read(_score(logits, move(whole[aims], device)))
    return [list(islice(scores, length)) for length in lengths]


def _score(logits: Tensor, tokens: Tensor) -> Tensor:
    """Score one token (N,) per row of logits (N, vocab): (N, 2), its log-probability and 1 if it is the most likely."""
    logprobs = logits.float().log_softmax(-1)
    values = logprobs.gather(1, tokens[:, None])[:, 0]
    return torch.stack([values, (logprobs.argmax(-1) == tokens).float()], 1)


def _read(scores: Tensor) -> Iterator[TokenScore]:
    """Synchronise with the device once and yield its scores (N, 2) one by one."""
    return (TokenScore(logprob, bool(is_greedy)) for logprob, is_greedy in scores.tolist())
