"""Frozen linear maps with their weights laid out once for the CPU's bfloat16 matrix unit.

oneDNN brings a weight into its own layout at every product; a weight that never changes needs that once, and once more
transposed for the gradient of its input, which is the only gradient a frozen map has. The results are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 256  # the number of rows the layout is chosen for: tokens of a usual batch


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = upstream[0].contiguous()
        return torch.ops.mkldnn._linear_pointwise(gradient, ctx.transposed, None, "none", [], ""), None, None, None


def can_pack(module: nn.Module) -> bool:
    """A frozen bfloat16 linear map on a CPU that oneDNN multiplies in bfloat16."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.bfloat16
        and not module.weight.requires_grad
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(modules: Iterable[nn.Module], megabytes: int) -> int:
    """Packs linear maps until their copies fill `megabytes`; returns how many were packed."""
    left, packed = megabytes * 2**20, 0
    for module in modules:
        if not can_pack(module):
            continue
        assert isinstance(module, nn.Linear)
        left -= 2 * module.weight.nbytes
        if left < 0:
            break
        module.forward = _packed_forward(module)  # type: ignore[method-assign]
        packed += 1
    return packed


def _packed_forward(module: nn.Linear) -> Any:
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS)
    transposed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach().t().contiguous(), ROWS)

    original = module.forward

    def forward(x: Tensor) -> Tensor:
        if module.weight.requires_grad:  # somebody trains it: the copies would be stale, its gradient lost
            return original(x)
        result: Tensor = _Packed.apply(x, weight, transposed, module.bias)
        return result

    return forward
