"""A training step of any model: what is timed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import Batch


def training_step(loss: Callable[[], Tensor], trained: Sequence[torch.nn.Parameter]) -> Callable[[], float]:
    """Loss, backward and AdamW's step; returns the mean loss. `loss` gives the mean over the supervised tokens."""
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return step


def mean_loss(model: SlotModel, batch: Batch, *, plain: bool = False) -> Tensor:
    """Mean cross-entropy of our training step; plain: every layer on every text."""
    model.use_reference_path = plain
    try:
        loss, tokens = model.loss(batch)
    finally:
        model.use_reference_path = False
    return loss / tokens
