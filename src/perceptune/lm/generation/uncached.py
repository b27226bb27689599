"""Decoding without a cache, for slots that attend to the text and LMs that cannot use split execution."""

import torch
from torch import Tensor

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.types import Prompt


class UncachedState:
    """The interface of `DecodeState` that decoding loops use, without keys and values.

    `logits` (rows, vocab) are those of the next token.
    """

    def __init__(self, lm: FrozenLM, prompt: Prompt) -> None:
        self.lm, self._ids, self._mask, self._slots = lm, prompt.ids, prompt.mask, list(prompt.slots)
        self._prompt = prompt.ids.shape[1]
        self.rows = torch.arange(len(self._ids), device=self._ids.device)  # index in the original batch
        self.logits = self._run()

    def select_rows(self, index: Tensor) -> None:
        """Keep only these rows; an index may occur more than once."""
        self._ids, self._mask, self.rows, self.logits = (
            given[index] for given in (self._ids, self._mask, self.rows, self.logits)
        )
        self._slots = [slot.of_rows(index) for slot in self._slots]

    def reorder(self, index: Tensor) -> None:
        """Replace each row's new tokens by those of the row given by `index`."""
        self._ids = torch.cat([self._ids[:, : self._prompt], self._ids[index, self._prompt :]], 1)

    def hold(self, ended: Tensor) -> None:
        """Do nothing: positions of ended rows follow from the mask."""

    def decode_step(self, tokens: Tensor) -> Tensor:
        """Return the logits (rows, vocab) after one more token (rows,) each."""
        self._ids = torch.cat([self._ids, tokens[:, None]], 1)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self.logits = self._run()
        return self.logits

    def _run(self) -> Tensor:
        last = torch.zeros(self._mask.shape, dtype=torch.bool)  # on the CPU, which saves a synchronisation
        last[:, -1] = True
        return self.lm(self._ids, self._mask, self._slots, keep=last, use_reference_path=True)
