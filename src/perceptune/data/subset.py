"""Random subsets of samples, fixed by a seed."""

from collections.abc import Sequence

import torch


def subset(n: int, size: int | None, seed: int) -> Sequence[int]:
    """Return a fixed random subset of range(n) in order; smaller subsets of a seed are contained in larger ones."""
    if size is None or size >= n:
        return range(n)
    return sorted(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:size].tolist())


def sample_count(n: int, amount: int | float | None) -> int | None:
    """Convert a number, or a fraction below 1, of `n` samples to a number; None for all."""
    return max(1, round(n * amount)) if isinstance(amount, float) else amount
