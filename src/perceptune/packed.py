"""Frozen linear maps with their weights laid out once for the CPU's bfloat16 matrix unit.

oneDNN brings a weight into its own layout at every product; a weight that never changes needs that once, and once more
transposed for the gradient of its input, which is the only gradient a frozen map has. The results are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 256  # the number of rows the layout is chosen for: tokens of a usual batch


class Packed:
    """A frozen linear map's weight (N, K) in oneDNN's layout, for x W^T and for the gradient of x."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._state = weight, _state_of(weight)
        self.forward = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)

    @cached_property
    def transposed(self) -> Tensor:
        """Made when the first gradient is asked for: answers need none."""
        return torch.ops.mkldnn._reorder_linear_weight(self._weight.detach().t().contiguous(), ROWS)

    @property
    def is_current(self) -> bool:
        """Whether the weight still holds the values that were laid out, in the same place."""
        return _state_of(self._weight) == self._state

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(..., N) = x W^T + b for x (..., K)."""
        return _multiply(x, self.forward, bias)

    def gradient(self, upstream: Tensor) -> Tensor:
        """(..., K): the gradient of x, given that of the product."""
        return _multiply(upstream.contiguous(), self.transposed, None)


def _state_of(weight: Tensor) -> tuple[int, int, str]:
    return weight.data_ptr(), weight._version, str(weight.device)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return packed.product(x, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.packed.gradient(upstream[0]), None, None


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


def packed_weight(module: nn.Module) -> Packed | None:
    """What `pack` laid out for a linear map that is still as it was then, and frozen; None otherwise."""
    found: Packed | None = vars(module).get("packed")
    return None if found is None or module.weight.requires_grad or not found.is_current else found


def pack(modules: Iterable[nn.Module], megabytes: int) -> int:
    """Packs linear maps until their copies, earlier ones included, fill `megabytes`; returns how many were packed."""
    left, packed = megabytes * 2**20, 0
    for module in modules:
        before = packed_weight(module)
        if before is None and not can_pack(module):
            continue
        assert isinstance(module, nn.Linear)
        left -= 2 * module.weight.nbytes
        if before is not None:
            continue
        if left < 0:
            break
        object.__setattr__(module, "packed", Packed(module.weight))
        module.forward = _packed_forward(module)  # type: ignore[method-assign]
        packed += 1
    return packed


def _packed_forward(module: nn.Linear) -> Any:
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        packed = packed_weight(module)  # None where somebody trains it: its gradient would be lost
        if packed is None:
            return original(x)
        result: Tensor = _PackedLinear.apply(x, packed, module.bias)
        return result

    return forward
