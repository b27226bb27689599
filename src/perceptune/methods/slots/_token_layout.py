"""The tokens that a mapper gets of an encoder layer, and those that random tokens keep."""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from perceptune.encoders.base import grid_side
from perceptune.errors import UserError
from perceptune.methods.slots._disturbance import row_generators
from perceptune.methods.slots._method import EncoderShape
from perceptune.types import Draws

# Share of the patches that are kept in a training step: normally distributed, between these limits, but now and then
# the upper one (the released code of DePALM).
SHARE_MEAN, SHARE_STD, SHARE_LIMITS, ALWAYS_MOST = 0.25, 0.2, (1 / 16, 1 / 2), 0.1


@dataclass(frozen=True)
class TokenLayout:
    """The tokens that a mapper gets of an encoder layer."""

    n_tokens: int
    n_special: int  # in front of the patches, [CLS] first
    grid: tuple[int, int] | None  # rows and columns of the patches
    modality: str

    @property
    def n_kept(self) -> int:
        """Number of special tokens that regroup the patches: [CLS], if there is one."""
        return min(self.n_special, 1)

    def patches(self, kind: str) -> tuple[int, int]:
        """Return rows and columns of the patches. Raises `UserError` if they are no grid."""
        if self.grid is None:
            raise UserError(
                f"method.mapper: {kind} is for patches in rows and columns, and the {self.modality} encoder's are not; "
                "`attn-pool` and `qp` take any tokens"
            )
        return self.grid

    def groups(self, kind: str, side: int) -> tuple[int, int]:
        """Return rows and columns of groups of `side` x `side` patches. Raises `UserError` if they do not fit."""
        height, width = self.patches(kind)
        if height % side or width % side:
            fitting = [n for n in range(1, min(height, width) + 1) if height % n == 0 and width % n == 0]
            raise UserError(
                f"method.mapper_group is {side}, but the {self.modality} encoder's {height} x {width} patches can be "
                f"cut into groups with a side of {', '.join(map(str, fitting))} only"
            )
        return height // side, width // side


def layout_of(tokens: str, shape: EncoderShape, modality: str) -> TokenLayout:
    """Return the layout of the selected tokens of an encoder of this shape."""
    if tokens == "cls":
        return TokenLayout(1, 1, None, modality)
    kept = min(shape.n_special, 1)
    if tokens == "cls-mean":
        return TokenLayout(2, kept, None, modality)
    if (side := grid_side(tokens)) is not None:
        return TokenLayout(kept + side * side, kept, (side, side), modality)
    is_grid = shape.grid is not None and shape.n_tokens - shape.n_special == math.prod(shape.grid)
    return TokenLayout(shape.n_tokens, shape.n_special, shape.grid if is_grid else None, modality)


def draw_tokens(layout: TokenLayout, draws: Draws) -> Tensor:
    """Return the indices (B, k) of the tokens that random tokens keep: all special ones, and k - `n_special` patches.

    Each row draws its own, in their order; how many is drawn for a step.
    """
    chance = random.Random(f"share-{draws.step}")
    share = chance.gauss(SHARE_MEAN, SHARE_STD)
    low, high = SHARE_LIMITS
    share = high if chance.random() < ALWAYS_MOST else min(max(share, low), high)
    patches = layout.n_tokens - layout.n_special
    k = max(1, round(share * patches))
    special = torch.arange(layout.n_special)
    rows = []
    for own in row_generators("tokens", draws):
        drawn = torch.randperm(patches, generator=own)[:k]
        rows.append(torch.cat([special, layout.n_special + drawn.sort().values]))
    return torch.stack(rows)
