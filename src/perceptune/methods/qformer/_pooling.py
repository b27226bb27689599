"""What several parts of PETAL make one vector of a text by."""

from torch import Tensor


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """(B, d): the mean of each row's states (B, L, d) where its mask (B, L) is 1."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
