"""Bootstrap intervals: they cover the truth, do not move with memory limits, and use the pairing."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from perceptune.data import bootstrap
from perceptune.data.bootstrap import bootstrap_corpus, bootstrap_difference, bootstrap_interval


def test_it_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random(400) < 0.7
    low, high = bootstrap_interval(values.astype(float))
    error = 1.96 * values.std() / np.sqrt(values.size)
    assert low == pytest.approx(values.mean() - error, abs=0.01)
    assert high == pytest.approx(values.mean() + error, abs=0.01)


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    intervals = [bootstrap_interval(rng.normal(size=60), level=0.8, samples=300) for _ in range(300)]
    assert 0.72 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.86


def test_it_is_a_function_of_the_seed_and_grows_with_the_level() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 5.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("at_once", [1, 64, 1000])
def test_the_size_of_a_portion_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(range(30))
    whole = bootstrap_interval(values, samples=101)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", at_once)
    assert bootstrap_interval(values, samples=101) == whole


def test_memory_does_not_grow_with_the_number_of_resamplings() -> None:
    values = np.zeros(20_000)
    tracemalloc.start()
    bootstrap_interval(values, samples=500)  # 10 million draws, 160 MB in one piece
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_values_of_one_group_are_drawn_together() -> None:
    rng = np.random.default_rng(6)
    per_group = rng.random(50)
    values, groups = np.repeat(per_group, 10), [f"picture {i}" for i in range(50) for _ in range(10)]
    assert bootstrap_interval(values, groups=groups) == pytest.approx(bootstrap_interval(per_group))
    naive, honest = bootstrap_interval(values), bootstrap_interval(values, groups=groups)
    assert honest[1] - honest[0] > 2 * (naive[1] - naive[0])
    assert bootstrap_interval(values, groups=range(500)) == pytest.approx(naive)
    with pytest.raises(ValueError, match="500 values and 3 groups"):
        bootstrap_interval(values, groups=[1, 2, 3])


def test_groups_of_different_size_weigh_by_their_size() -> None:
    low, high = bootstrap_interval([1.0] * 9 + [0.0], groups=[0] * 9 + [1])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([1.0, 1.0, 0.0, 0.0], groups=[0, 1, 0, 1]) == (0.5, 0.5)


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap_interval([1.0] * 5) == (1.0, 1.0)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0), "first and last are drawn"


def test_pairs_keep_the_difficulty_of_a_sample_out() -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.normal(size=200)
    better, worse = difficulty + 0.1, difficulty + rng.normal(scale=0.05, size=200)
    low, high = bootstrap_difference(better, worse)
    assert 0 < low < 0.1 < high
    unpaired = bootstrap_interval(better)
    assert high - low < (unpaired[1] - unpaired[0]) / 5
    assert bootstrap_difference(worse, better)[0] < -high + 0.01


def test_what_has_no_interval_is_refused() -> None:
    refused: list[Any] = [[], [[1.0, 2.0]], [1.0, float("nan")]]
    for values in refused:
        with pytest.raises(ValueError, match=r"non-empty|finite"):
            bootstrap_interval(values)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            bootstrap_interval([1.0], level=level)
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap_interval([1.0], samples=0)
    with pytest.raises(ValueError, match="one length"):
        bootstrap_difference([1.0, 2.0], [1.0])


def test_a_corpus_value_that_is_a_mean_has_the_interval_of_the_mean() -> None:
    rng = np.random.default_rng(8)
    values, groups = rng.random(60), rng.integers(9, size=60).tolist()
    bootstrap = np.column_stack([values, np.ones(60)])
    for given in (None, groups):
        interval = bootstrap_corpus(bootstrap, lambda sums: sums[..., 0] / sums[..., 1], groups=given, seed=5)
        assert interval == bootstrap_interval(values, groups=given, seed=5)


def test_a_ratio_of_sums_is_not_the_mean_of_ratios() -> None:
    bootstrap = np.array([[1.0, 1.0], [0.0, 99.0]] * 50)

    def ratio(sums: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return sums[..., 0] / sums[..., 1]

    low, high = bootstrap_corpus(bootstrap, ratio)
    assert low < 0.01 < high < 0.03, "the mean of ratios is 0.5"
    assert bootstrap_corpus(bootstrap, ratio, level=0.5)[0] > low
    with pytest.raises(ValueError, match="non-empty rows"):
        bootstrap_corpus(bootstrap[:, 0], ratio)
    with pytest.raises(ValueError, match="100 values and 1 groups"):
        bootstrap_corpus(bootstrap, ratio, groups=[1])
