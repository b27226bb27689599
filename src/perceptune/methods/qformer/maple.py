"""MaPLe (arXiv 2210.03117) on a Q-Former: deep text prompts, coupled by linear maps to prompts among the queries.

PETAL's table has a row of this name without a description, so the places are our own: in each of the first `depth`
layers, `tokens` trained vectors stand behind the instruction and as many behind the query tokens, and the latter are
linear maps of the former, one map per layer, as MaPLe couples its vision to its language branch. Each of these
layers overwrites them; above, they pass on like any token. The default's five maps have the row's 2.9 million.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.methods.qformer.base import FrozenBlip, Instruction, QFormerMethod, QFormerOptions, QFormerOutput, Site

DEPTH = 5
STD = 0.02  # of the prompts at the start, as in MaPLe


class MaPLeOptions(QFormerOptions):
    """Options: place and number of the prompts."""

    depth: int | None = Field(
        None, ge=1, description="number of first layers with their own prompts; None = 5, or all if there are fewer"
    )
    tokens: int = Field(2, ge=1, description="prompts per layer, in the text and in the queries each")


class MaPLe(QFormerMethod):
    """Prompts of each layer, and the maps from those of the text to those of the queries.

    A Q-Former without text input (BLIP-2's) has only those among the queries.
    """

    Options = MaPLeOptions

    def __init__(self, options: MaPLeOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        n, size = len(blip.layers), blip.hidden_size
        self.depth = options.depth or min(DEPTH, n)
        if self.depth > n:
            raise UserError(f"method.depth: the Q-Former has {n} layers, not {self.depth}")
        self.tokens, self._n_queries = options.tokens, blip.n_queries
        self.prompts = nn.Parameter(torch.randn(self.depth, self.tokens, size) * STD)
        self.couplings = nn.ModuleList(nn.Linear(size, size) for _ in range(self.depth))
        self._room: int | None = None
        if blip.reads_instructions:
            self._room = int(blip.qformer.config.max_position_embeddings) - options.tokens

    def attach(self, blip: FrozenBlip) -> None:
        for index in range(self.depth):
            blip.layers[index].register_forward_pre_hook(lambda _, args, index=index: self._put_in(index, args))

    def _put_in(self, index: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Write the layer's own prompts into its input states (B, n + tokens + L, d)."""
        states, *others = args
        rows, start = states.shape[0], self._n_queries
        text = self.prompts[index]
        visual = self.couplings[index](text)
        parts = [states[:, :start], visual.expand(rows, -1, -1)]
        if self._room is None:
            parts.append(states[:, start + self.tokens :])
        else:
            parts += [states[:, start + self.tokens : -self.tokens], text.expand(rows, -1, -1)]
        return (torch.cat(parts, dim=1), *others)

    def queries(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        rows, length = len(image), 0
        # The states at the prompts' positions are never used.
        asked = torch.cat([blip.query_tokens, blip.query_tokens[:, :1].expand(1, self.tokens, -1)], dim=1)
        instruction = None
        if instructions and self._room is not None:
            one, length = instructions[0], instructions[0].ids.shape[1]
            if length > self._room:
                raise UserError(
                    f"an instruction of {length} tokens leaves no room for the {self.tokens} prompts of `maple` in the "
                    f"Q-Former's {self._room + self.tokens} positions: shorten it or lower `method.tokens`"
                )
            instruction = Instruction(
                torch.cat([one.ids, one.ids.new_zeros(rows, self.tokens)], dim=1),
                torch.cat([one.mask, one.mask.new_ones(rows, self.tokens)], dim=1),
            )
        states = blip.run_qformer(asked, instruction, image)
        text = states[:, blip.n_queries + self.tokens :][:, :length] if length else None
        return QFormerOutput(states[:, : blip.n_queries], text)

    def sites(self) -> list[Site]:
        what = f"{self.tokens} prompts among the queries, coupled to as many in the text"
        if self._room is None:
            what = f"{self.tokens} prompts among the queries, linear maps of trained vectors"
        return [Site(layer, f"input of qformer.encoder.layer.{layer}", what) for layer in range(self.depth)]


METHOD = MaPLe
