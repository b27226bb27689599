"""How sure a mean over samples is: percentile bootstrap intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1 << 21  # resampled values at a time: 32 MiB with their indices
Values = Sequence[float] | NDArray[np.floating]


def bootstrap_interval(
    values: Values,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of `values` at confidence `level`, from `samples` resamplings.

    Values of one of the `groups` (the questions on one picture, say) are drawn together, because they are not
    independent; without groups each value is drawn for itself.
    """
    return _quantiles(_resampled_means(values, groups, samples, np.random.default_rng(seed)), level)


def bootstrap_difference(
    a: Values,
    b: Values,
    *,
    groups: Sequence[Hashable] | None = None,
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
    return bootstrap_interval(first - second, groups=groups, level=level, samples=samples, seed=seed)


def bootstrap_gap(
    a: Values,
    b: Values,
    *,
    groups_a: Sequence[Hashable] | None = None,
    groups_b: Sequence[Hashable] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) of two different sets of samples, each resampled for itself."""
    rng = np.random.default_rng(seed)
    first = _resampled_means(a, groups_a, samples, rng)
    return _quantiles(first - _resampled_means(b, groups_b, samples, rng), level)


def _resampled_means(
    values: Values, groups: Sequence[Hashable] | None, samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"expected a non-empty list of numbers, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("the values must be finite")
    if samples < 1:
        raise ValueError(f"`samples` is at least 1, got {samples}")
    sums, sizes = _grouped(data, groups)
    at_once = max(1, _DRAWS_AT_ONCE // sums.size)
    means = []
    for done in range(0, samples, at_once):
        drawn = rng.integers(sums.size, size=(min(at_once, samples - done), sums.size))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def _quantiles(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"`level` lies between 0 and 1, got {level}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _grouped(
    data: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and size of each group."""
    if groups is None:
        return data, np.ones_like(data)
    if len(groups) != data.size:
        raise ValueError(f"{data.size} values and {len(groups)} groups")
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = np.array([number[group] for group in groups])
    return np.bincount(index, weights=data).astype(np.float64), np.bincount(index).astype(np.float64)
