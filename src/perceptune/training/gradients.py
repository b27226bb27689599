"""Gradients of a method over the batches of a step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from perceptune.models.base import AdaptedModel
from perceptune.models.batch import Batch


def add_gradients(
    model: AdaptedModel, batches: Sequence[Batch | None], stand_in: Batch | None = None
) -> tuple[list[Tensor], int, int]:
    """Add up gradients of the loss sum; return each batch's loss with the number of tokens and samples.

    Losses stay on their device: reading one waits for it. Where a batch is missing, `stand_in` is gone through without
    effect.
    """
    losses: list[Tensor] = []
    tokens, samples = 0, 0
    model.dropout(on=True)
    try:
        for batch in batches:
            if batch is not None:
                loss, n = model.loss(batch)
                if loss.requires_grad:  # rows without media may leave nothing to learn
                    loss.backward()
                losses.append(loss.detach())
                tokens, samples = tokens + n, samples + batch.n_samples
            elif stand_in is not None:
                (0 * model.loss(stand_in)[0]).backward()
    finally:  # the caller may catch an error and go on with the model
        model.dropout(on=False)
    return losses, tokens, samples
