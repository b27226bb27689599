"""Gradients of a method: from a sum to a mean, and clipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perceptune.config.training import TrainConfig
from perceptune.methods.base import Site, TrainableMethod
from perceptune.training.optimizer import MethodOptimizer


class Line(TrainableMethod):
    """Two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def sites(self) -> list[Site]:
        return []


def optimizer(clip: float | None, ema: float | None = None) -> tuple[MethodOptimizer, nn.Parameter]:
    line = Line()
    line.weight.grad = torch.tensor([3.0, 4.0])
    return MethodOptimizer(line, TrainConfig(steps=1, clip=clip, ema=ema), 1), line.weight


@pytest.mark.parametrize(("clip", "left"), [(None, 5.0), (1.0, 1.0), (7.0, 5.0)])
def test_the_norm_before_is_told_and_the_gradient_is_no_longer_than_asked_for(clip: float | None, left: float) -> None:
    made, weight = optimizer(clip)
    assert made.clip() == pytest.approx(5.0)
    assert weight.grad is not None
    assert float(weight.grad.norm()) == pytest.approx(left, rel=1e-5)


def test_a_sum_becomes_a_mean_and_a_step_leaves_no_gradient() -> None:
    made, weight = optimizer(None)
    made.scale_grads(4)
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.75, 1.0]
    made.set_lr(0)
    made.step(0)
    assert weight.grad is None
    assert bool((weight < 0).all())


def test_after_a_reset_nothing_is_left_of_steps() -> None:
    made, weight = optimizer(None, ema=0.5)
    made.set_lr(0)
    made.step(0)
    assert {name.partition("/")[0] for name in made.state_dict()} == {"average", "step", "exp_avg", "exp_avg_sq"}
    made.reset()
    assert made.state_dict() == {}
    with made.averaged():
        assert bool((weight < 0).all())
