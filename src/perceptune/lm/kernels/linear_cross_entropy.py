"""Cross-entropy through a frozen vocabulary head, computed in chunks of the vocabulary.

The head is the widest matrix of the LM, and its logits are used for a single number. As its weight is frozen, the
gradient of the states is the only other result needed: it is computed with the loss, chunk by chunk, and no logits
are stored.
"""

from typing import Any

import torch
from torch import Tensor, nn

from perceptune.lm.kernels.packed_linear import Packed, packed_weight

PIECE = 16 * 2**20  # logits per chunk: 64 MiB in float32


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, packed: Packed | None,
        row_weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rows = max(1, PIECE // weight.shape[0])
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), rows):
            part, aims = states[start : start + rows], targets[start : start + rows, None]
            logits = nn.functional.linear(part, weight, bias) if packed is None else packed.product(part, bias)
            logits = logits.float()
            logits -= logits.amax(-1, keepdim=True)
            aimed = logits.gather(1, aims)
            chances = logits.exp_()
            sums = chances.sum(-1, keepdim=True)
            losses = sums.log() - aimed
            own = None if row_weights is None else row_weights[start : start + rows, None]
            total += (losses if own is None else losses * own).sum()
            if gradient is not None:
                chances /= sums
                chances.scatter_add_(1, aims, -torch.ones_like(aimed))
                if own is not None:
                    chances *= own
                upstream = chances.to(weight.dtype)
                gradient[start : start + rows] = upstream @ weight if packed is None else packed.gradient(upstream)
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return (ctx.gradient * upstream[0]).to(ctx.gradient.dtype), None, None, None, None, None


def frozen_head_loss(states: Tensor, head: nn.Linear, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy summed over states (N, d) with `targets` (N,): float32, with a gradient for states.

    `weights` (N,) float32 multiply the losses; None = 1.
    """
    if head.weight.requires_grad:
        raise RuntimeError("the vocabulary head is being trained: its own gradient would be lost")
    return _FrozenHeadLoss.apply(states, head.weight, head.bias, targets, packed_weight(head), weights)
