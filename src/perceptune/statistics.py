"""How sure a mean over samples is: percentile bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1 << 21  # resampled values at a time: 32 MiB with their indices


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.floating], *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of independent `values` at confidence `level`, from `samples` resamplings."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"expected a non-empty list of numbers, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("the values must be finite")
    if not 0 < level < 1:
        raise ValueError(f"`level` lies between 0 and 1, got {level}")
    if samples < 1:
        raise ValueError(f"`samples` is at least 1, got {samples}")
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // data.size)
    means = np.concatenate(
        [
            data[rng.integers(data.size, size=(min(at_once, samples - done), data.size))].mean(axis=1)
            for done in range(0, samples, at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_difference(
    a: Sequence[float] | NDArray[np.floating],
    b: Sequence[float] | NDArray[np.floating],
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of mean(a) - mean(b), where `a[i]` and `b[i]` belong to the same sample.

    Resampling the pairs keeps what makes a sample easy or hard for both out of the interval.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values have one length, got shapes {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, level=level, samples=samples, seed=seed)
