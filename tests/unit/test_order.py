"""Data order and learning rate are functions of the step."""

from __future__ import annotations

import math

import pytest

from perceptune.config import TrainConfig
from perceptune.order import DataOrder, chosen_target, learning_rate, subset, total_steps, view_draw


def test_each_epoch_sees_every_sample_once() -> None:
    order = DataOrder(7, 3, seed=1)
    rows = [position for batch in range(7) for position in order.positions(batch)]
    for epoch in range(3):
        assert sorted(i for e, i in rows if e == epoch) == list(range(7))
    assert [i for e, i in rows if e == 0] != [i for e, i in rows if e == 1]


def test_the_order_does_not_depend_on_where_one_starts() -> None:
    whole = [DataOrder(11, 4, seed=2).positions(batch) for batch in range(9)]
    late = DataOrder(11, 4, seed=2)
    assert late.positions(8) == whole[8]
    assert late.positions(1) == whole[1]
    assert DataOrder(11, 4, seed=3).positions(0) != whole[0]


def test_all_references_are_used() -> None:
    drawn = {chosen_target(("a", "b", "c"), 0, epoch, 5) for epoch in range(40)}
    assert drawn == {"a", "b", "c"}
    assert chosen_target(("a", "b", "c"), 0, 3, 5) == chosen_target(("a", "b", "c"), 0, 3, 5)


def test_all_views_are_drawn_anew_for_each_sample_and_epoch() -> None:
    assert {view_draw(0, epoch, 5) % 3 for epoch in range(40)} == {0, 1, 2}
    assert len({view_draw(seed, epoch, i) for seed in range(3) for epoch in range(3) for i in range(3)}) == 27
    assert view_draw(0, 3, 5) == view_draw(0, 3, 5)


def test_subsets_are_nested() -> None:
    assert set(subset(100, 10, 0)) < set(subset(100, 30, 0))
    assert subset(5, None, 0) == subset(5, 9, 0) == range(5)


def test_steps_follow_from_epochs() -> None:
    assert total_steps(TrainConfig(epochs=2, accumulate=2), DataOrder(40, 4, seed=0)) == 10
    assert total_steps(TrainConfig(steps=3), DataOrder(40, 4, seed=0)) == 3


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
