"""The loss through a frozen head: the usual cross-entropy, in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perceptune.lm.kernels import linear_cross_entropy as head_module
from perceptune.lm.kernels.linear_cross_entropy import frozen_head_loss


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_value_and_gradient_are_those_of_cross_entropy(
    bias: bool, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=bias).requires_grad_(False)
    monkeypatch.setattr(head_module, "PIECE", rows_at_once * 50)
    states, targets = torch.randn(7, 8) * 9, torch.randint(0, 50, (7,))
    results = []
    for loss in (
        lambda s: nn.functional.cross_entropy(head(s), targets, reduction="sum"),
        lambda s: frozen_head_loss(s, head, targets),
    ):
        given = states.clone().requires_grad_()
        value = loss(given) * 0.5
        value.backward()
        results.append((value.detach(), given.grad))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6, rtol=1e-5)


def test_a_head_that_is_trained_is_refused_and_no_gradient_is_fine() -> None:
    head = nn.Linear(4, 9)
    with pytest.raises(RuntimeError, match="head is being trained"):
        frozen_head_loss(torch.randn(2, 4), head, torch.tensor([1, 2]))
    head.requires_grad_(False)
    assert not frozen_head_loss(torch.randn(2, 4), head, torch.tensor([1, 2])).requires_grad
    assert frozen_head_loss(torch.zeros(0, 4), head, torch.zeros(0, dtype=torch.long)) == 0


def test_bfloat16_keeps_the_states_dtype() -> None:
    head = nn.Linear(8, 50).requires_grad_(False).bfloat16()
    states = torch.randn(5, 8).bfloat16().requires_grad_()
    loss = frozen_head_loss(states, head, torch.arange(5))
    loss.backward()
    assert loss.dtype == torch.float32
    assert states.grad is not None
    assert states.grad.dtype == torch.bfloat16
