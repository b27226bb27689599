"""Gradients of a method over the batches of a step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from perceptune.models.base import AdaptedModel
from perceptune.models.batch import Batch


def add_gradients(
    model: AdaptedModel, batches: Sequence[Batch | None], dummy_batch: Batch | None = None
) -> tuple[list[Tensor], int, int]:
    """Add up gradients of the loss sum; return each batch's loss with the number of tokens and samples.

    Losses stay on their device: reading one waits for it. Where a batch is missing, `dummy_batch` is gone through
    without effect.
    """
    losses: list[Tensor] = []
    tokens, samples = 0, 0
    model.set_dropout(on=True)
    try:
        for batch in batches:
            if batch is not None:
                loss, n = model.loss(batch)
                if loss.requires_grad:  # rows without media may leave nothing to learn
                    loss.backward()
                losses.append(loss.detach())
                tokens, samples = tokens + n, samples + batch.n_samples
            elif dummy_batch is not None:
                (0 * model.loss(dummy_batch)[0]).backward()
    finally:  # the caller may catch an error and go on with the model
        model.set_dropout(on=False)
    return losses, tokens, samples
