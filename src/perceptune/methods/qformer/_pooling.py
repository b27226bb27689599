"""Pooling of token states, shared by several parts of PETAL."""

from torch import Tensor


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """Return (B, d): the mean of each row's states (B, L, d) over the positions where its mask (B, L) is 1."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
