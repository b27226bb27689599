"""Levels of encoders whose stages differ in width."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from perceptune.encoders._encoder import TokenSelection
from perceptune.errors import UserError


def pooled_levels(
    means: Sequence[Tensor] | Mapping[int, Tensor], levels: Sequence[int], dim: int, tokens: TokenSelection
) -> Tensor:
    """(B, n_levels, 1, dim) float32 of the means (B, width) of stages; zeros follow the narrower ones.

    Raises `UserError` for `tokens="all"`: the stages differ in their numbers of tokens.
    """
    if tokens == "all":
        raise UserError("an encoder whose stages differ in size gives one pooled token a level, not all its tokens")
    chosen = [nn.functional.pad(means[level].float(), (0, dim - means[level].shape[1])) for level in levels]
    return torch.stack(chosen, dim=1)[:, :, None]
