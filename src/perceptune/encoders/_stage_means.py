"""Pooled levels of encoders whose stages differ in width."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from perceptune.encoders._tokens import TokenSelection
from perceptune.errors import UserError


def pooled_levels(
    means: Sequence[Tensor] | Mapping[int, Tensor], levels: Sequence[int], dim: int, tokens: TokenSelection
) -> Tensor:
    """Stack the means (B, width) of stages to (B, n_levels, 1, dim) float32; pad narrower ones with zeros.

    Raises `UserError` for other `tokens` than `cls`, because the number of tokens differs between stages.
    """
    if tokens != "cls":
        why = "an encoder whose stages differ in size gives one pooled token a level"
        raise UserError(f"`tokens: {tokens}`: {why}; use `cls`")
    chosen = [nn.functional.pad(means[level].float(), (0, dim - means[level].shape[1])) for level in levels]
    return torch.stack(chosen, dim=1)[:, :, None]
