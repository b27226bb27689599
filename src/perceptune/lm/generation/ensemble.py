"""Several methods that answer together: the probability of the next token is the mean of the members'."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from perceptune.lm.frozen_lm import FrozenLM, LayerStates
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.uncached import UncachedState
from perceptune.types import Prompt


class MemberPrompt(NamedTuple):
    """A member's LM, and its prompts with slots; the LM runs inside `attached`, with what the method adds to it."""

    lm: FrozenLM
    prompt: Prompt
    attached: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class EnsemblePrompt(Prompt):
    """The same prompts for each member; ids, mask and slots are those of the first."""

    members: Sequence[MemberPrompt] = ()


class EnsembleState(DecodeState):
    """The members' states in step, each with its own keys and values. `logits` are logarithms of mean probabilities."""

    def __init__(self, prompt: EnsemblePrompt, room: int) -> None:
        self._attached = [member.attached for member in prompt.members]
        self._states: list[DecodeState | UncachedState] = []
        for member in prompt.members:
            with member.attached():
                self._states.append(_single_state(member.lm, member.prompt, room))
        self.rows, self.logits = self._states[0].rows, self._mean()

    def select_rows(self, index: Tensor) -> None:
        """Keep only these rows; an index may occur more than once."""
        for state in self._states:
            state.select_rows(index)
        self.rows, self.logits = self._states[0].rows, self.logits[index]

    def reorder(self, index: Tensor) -> None:
        """Replace each row's generated tokens by those of the row given by `index`."""
        for state in self._states:
            state.reorder(index)

    def hold(self, ended: Tensor) -> None:
        """Stop advancing the positions of ended rows (rows,); call before `decode_step`."""
        for state in self._states:
            state.hold(ended)

    def decode_step(self, tokens: Tensor, *, text_states: LayerStates | None = None) -> Tensor:
        """Return the logits (rows, vocab) after one more token (rows,) each."""
        for attached, state in zip(self._attached, self._states, strict=True):
            with attached():
                state.decode_step(tokens)
        self.logits = self._mean()
        return self.logits

    def merge(self, others: Sequence[DecodeState], room: int) -> None:
        raise ValueError("states of an ensemble cannot be joined")

    def _mean(self) -> Tensor:
        each = torch.stack([state.logits.float().log_softmax(-1) for state in self._states])
        return each.logsumexp(0) - math.log(len(each))


def start_state(lm: FrozenLM, prompt: Prompt, room: int) -> DecodeState | UncachedState:
    """Return the state of prompts, for an ensemble that of its members in step."""
    if isinstance(prompt, EnsemblePrompt):
        return EnsembleState(prompt, room)
    return _single_state(lm, prompt, room)


def _single_state(lm: FrozenLM, prompt: Prompt, room: int) -> DecodeState | UncachedState:
    return DecodeState(lm, prompt, room) if lm.why_reference_path(prompt.slots) is None else UncachedState(lm, prompt)
