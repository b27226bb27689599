"""Data order and learning rate are functions of the step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from perceptune.config.training import TrainConfig
from perceptune.data.subset import subset
from perceptune.training.optimizer import learning_rate
from perceptune.training.sampler import (
    BatchSampler,
    TextLengths,
    TokenBatchSampler,
    chosen_target,
    make_batch_sampler,
    total_steps,
    view_seed,
)


def test_each_epoch_sees_every_sample_once() -> None:
    order = BatchSampler(7, 3, seed=1)
    rows = [position for batch in range(7) for position in order.positions(batch)]
    for epoch in range(3):
        assert sorted(i for e, i in rows if e == epoch) == list(range(7))
    assert [i for e, i in rows if e == 0] != [i for e, i in rows if e == 1]


def test_the_order_does_not_depend_on_where_one_starts() -> None:
    whole = [BatchSampler(11, 4, seed=2).positions(batch) for batch in range(9)]
    late = BatchSampler(11, 4, seed=2)
    assert late.positions(8) == whole[8]
    assert late.positions(1) == whole[1]
    assert BatchSampler(11, 4, seed=3).positions(0) != whole[0]


def token_order(seed: int, n: int = 5000, budget: int = 600) -> TokenBatchSampler:
    return TokenBatchSampler(TextLengths(tokens_of(seed, n)), budget, seed)


def tokens_of(seed: int, n: int = 5000) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(1, 60, n).astype(np.int32)


@pytest.mark.parametrize("seed", range(5))
def test_token_batches_hold_every_sample_once_per_epoch_within_the_budget(seed: int) -> None:
    order, tokens = token_order(seed, n=997 + seed, budget=60 + 100 * seed), tokens_of(seed, 997 + seed)
    batches = [order.positions(number) for number in range(int(order.batches_of(2)))]
    for epoch in (0, 1):
        assert sorted(i for batch in batches for e, i in batch if e == epoch) == list(range(997 + seed))
    for batch in batches:
        assert len({epoch for epoch, _ in batch}) == 1
        lengths = [int(tokens[i]) for _, i in batch]
        assert len(batch) * max(lengths) <= order.budget
    assert batches[0] != order.positions(int(order.batches_of(1)))


@pytest.mark.parametrize("seed", range(3))
def test_token_batches_do_not_depend_on_where_one_starts(seed: int) -> None:
    whole = token_order(seed)
    numbers = range(0, int(whole.batches_of(3)), 97)
    batches = {number: whole.positions(number) for number in numbers}
    for number in reversed(numbers):
        assert token_order(seed).positions(number) == batches[number]
        assert whole.positions(number) == batches[number]
    assert token_order(seed + 1).positions(0) != batches[0]


def test_token_batches_waste_little_and_come_in_random_order() -> None:
    order, tokens = token_order(7), tokens_of(7)
    batches = [[int(tokens[i]) for _, i in order.positions(n)] for n in range(int(order.batches_of(1)))]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.06 * int(tokens.sum())
    assert padded > 0.9 * order.budget * len(batches), "batches are full"
    longest = [max(batch) for batch in batches]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.15, "long batches do not follow one another"


def test_token_batches_are_packed_by_the_target_that_is_drawn() -> None:
    targets = np.random.default_rng(3).integers(1, 6, 400).astype(np.int32)
    tokens, starts = tokens_of(3, int(targets.sum())), np.cumsum(targets) - targets
    order = TokenBatchSampler(TextLengths(tokens, targets), 600, 3)
    used = padded = 0
    for batch in range(int(order.batches_of(2))):
        rows = order.positions(batch)
        own = [tokens[starts[i] + int(chosen_target([str(k) for k in range(targets[i])], 3, e, i))] for e, i in rows]
        assert len(own) * max(own) <= 600
        used, padded = used + sum(own), padded + len(own) * max(own)
    assert padded < 1.1 * used, "by the longest targets half of it would be padding"


def test_epochs_of_token_batches_become_steps_by_counting() -> None:
    order = token_order(1)
    lengths, one, two = order.lengths, order.batches_of(1), order.batches_of(2)
    assert one > 64
    assert order.batches_of(1.5) == pytest.approx((one + two) / 2)
    config = TrainConfig(epochs=2, batch_tokens=600, accumulate=3)
    assert total_steps(config, make_batch_sampler(config, lengths, 1)) == round(two / 3)


def test_all_references_are_used() -> None:
    drawn = {chosen_target(("a", "b", "c"), 0, epoch, 5) for epoch in range(40)}
    assert drawn == {"a", "b", "c"}
    assert chosen_target(("a", "b", "c"), 0, 3, 5) == chosen_target(("a", "b", "c"), 0, 3, 5)


def test_all_views_are_drawn_anew_for_each_sample_and_epoch() -> None:
    assert {view_seed(0, epoch, 5) % 3 for epoch in range(40)} == {0, 1, 2}
    assert len({view_seed(seed, epoch, i) for seed in range(3) for epoch in range(3) for i in range(3)}) == 27
    assert view_seed(0, 3, 5) == view_seed(0, 3, 5)


def test_subsets_are_nested_and_in_order() -> None:
    assert set(subset(100, 10, 0)) < set(subset(100, 30, 0))
    assert list(subset(100, 30, 0)) == sorted(subset(100, 30, 0))
    assert list(subset(5, None, 0)) == list(subset(5, 9, 0)) == [0, 1, 2, 3, 4]


def test_steps_follow_from_epochs() -> None:
    lengths = TextLengths(np.ones(40, np.int32))
    for config, steps in ((TrainConfig(epochs=2, batch_size=4, accumulate=2), 10), (TrainConfig(steps=3), 3)):
        assert total_steps(config, make_batch_sampler(config, lengths, seed=0)) == steps


def test_the_paper_schedule() -> None:
    config = TrainConfig()
    assert learning_rate(config, "connector", 0, 10_000) == pytest.approx(1e-5)
    assert learning_rate(config, "connector", 200, 10_000) == pytest.approx(1.5e-5)
    assert learning_rate(config, "connector", 400, 10_000) == pytest.approx(2e-5)
    assert learning_rate(config, "connector", 10_000, 10_000) == pytest.approx(1e-6)
    middle = 1e-6 + 1.9e-5 * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert learning_rate(config, "connector", 5200, 10_000) == pytest.approx(middle)
    assert {learning_rate(config, "prompt", step, 10_000) for step in (0, 399, 9_999)} == {1e-5}


def test_a_short_run_warms_up_for_at_most_half_of_it() -> None:
    config = TrainConfig(schedule="linear", min_lr=0)
    rates = [learning_rate(config, "connector", step, 10) for step in range(10)]
    assert max(rates) == pytest.approx(2e-5)
    assert rates.index(max(rates)) == 5


@pytest.mark.parametrize(
    "order", [BatchSampler(10, 4, seed=0), token_order(0, n=300, budget=200)], ids=["samples", "tokens"]
)
def test_whole_epochs_are_counted_in_batches(order: BatchSampler | TokenBatchSampler) -> None:
    seen = [epoch for batch in range(70) for epoch, _ in order.positions(batch)]
    for batches in (1, 2, 3, 5, 33, 60):
        done = sum(len(order.positions(batch)) for batch in range(batches))
        n = seen.count(0)
        assert order.epochs_in(batches) == done // n
