"""Percentile bootstrap intervals of means, and of other values of sums over samples."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1 << 20  # values resampled at a time: 32 MiB with all temporaries
Floats = NDArray[np.float64]
Values = Sequence[float] | NDArray[np.floating]
Groups = Sequence[Hashable] | None  # values of one group are resampled together


def bootstrap_interval(
    values: Values, *, groups: Groups = None, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Compute the interval of the mean of `values` at confidence `level`, from `samples` resamples.

    Values of the same group (such as the questions on one image) are resampled together, because they are not
    independent; without groups each value is resampled separately.
    """
    return _quantiles(_resampled_means(values, groups, samples, np.random.default_rng(seed)), level)


def bootstrap_difference(
    a: Values, b: Values, *, groups: Groups = None, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Compute the interval of mean(a) - mean(b), where `a[i]` and `b[i]` belong to the same sample.

    Resampling pairs removes the variance between samples that is common to both.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values have one length, got shapes {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, groups=groups, level=level, samples=samples, seed=seed)


def bootstrap_gap(
    a: Values, b: Values, *, groups_a: Groups = None, groups_b: Groups = None, level: float = 0.95,
    samples: int = 2000, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Compute the interval of mean(a) - mean(b) of two different sets of samples, resampled independently."""
    rng = np.random.default_rng(seed)
    first = _resampled_means(a, groups_a, samples, rng)
    return _quantiles(first - _resampled_means(b, groups_b, samples, rng), level)


def bootstrap_corpus(
    statistics: NDArray[np.floating], value: Callable[[Floats], Floats], *, groups: Groups = None,
    level: float = 0.95, samples: int = 2000, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Compute the interval of a value that is not a mean over samples, such as BLEU.

    The value of a resample is `value` of the sums of `statistics` (samples, k). Resamples are the same as those of
    `bootstrap_interval` with this seed. For the difference of two systems on the same samples, pass the statistics of
    both side by side, and the difference of their values.
    """
    sums = _resampled_sums(statistics, groups, samples, np.random.default_rng(seed))
    return _quantiles(np.asarray(value(sums), dtype=np.float64), level)


def _resampled_means(values: Values, groups: Groups, samples: int, rng: np.random.Generator) -> Floats:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"expected a non-empty list of numbers, got shape {data.shape}")
    sums = _resampled_sums(np.column_stack([data, np.ones_like(data)]), groups, samples, rng)
    return sums[:, 0] / sums[:, 1]


def _resampled_sums(statistics: NDArray[np.floating], groups: Groups, samples: int, rng: np.random.Generator) -> Floats:
    """Compute the sums (samples, k) over each resample of `statistics` (n, k)."""
    data = np.asarray(statistics, dtype=np.float64)
    if data.ndim != 2 or not data.size:
        raise ValueError(f"expected non-empty rows of numbers, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("the values must be finite")
    if samples < 1:
        raise ValueError(f"`samples` is at least 1, got {samples}")
    columns = _grouped(data, groups)
    size = columns.shape[1]
    at_once = max(1, _DRAWS_AT_ONCE // size)
    sums = []
    for done in range(0, samples, at_once):
        rows = min(at_once, samples - done)
        drawn = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size
        # Weighting each value by its count is faster than gathering the drawn values, above all with many columns.
        times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        sums.append(np.einsum("rg,kg->rk", times, columns))  # not BLAS, whose sums depend on the number of threads
    return np.concatenate(sums)


def _quantiles(values: Floats, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"`level` lies between 0 and 1, got {level}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _grouped(data: Floats, groups: Groups) -> Floats:
    """Compute the sums (k, groups) of each column over each group."""
    if groups is None:
        return data.T.copy()
    if len(groups) != len(data):
        raise ValueError(f"{len(data)} values and {len(groups)} groups")
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = np.array([number[group] for group in groups])
    return np.stack([np.bincount(index, weights=column) for column in data.T])
