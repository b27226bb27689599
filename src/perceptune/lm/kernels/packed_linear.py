"""Frozen linear maps whose weights are packed once into the CPU's own layout.

oneDNN converts a bfloat16 weight into its own layout at every product; a weight that never changes needs that once,
and once more transposed for the gradient of its input, which is the only gradient of a frozen map. The results are
bit-identical. In float32 these products replace the BLAS's, which are slower for few rows and for a wide vocabulary
head; a row's result depends less on the other rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cached_property
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 256  # number of rows that the layout is chosen for: tokens of a usual batch


class Packed:
    """A frozen linear map's weight (N, K) in oneDNN's layout, for x W^T and for the gradient of x."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self._state = weight, _state_of(weight)
        self.forward = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)

    @cached_property
    def transposed(self) -> Tensor:
        """The transposed weight, packed at the first gradient, as inference needs none."""
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().t().contiguous(), ROWS)

    @property
    def is_current(self) -> bool:
        """Whether the weight still holds the packed values, in the same memory."""
        return _state_of(self.weight) == self._state

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed(copy.deepcopy(self.weight, memo))

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return (..., N) = x W^T + b for x (..., K)."""
        return _multiply(x, self.forward, bias)

    def gradient(self, upstream: Tensor) -> Tensor:
        """Return the gradient (..., K) of x, given that of the product."""
        return _multiply(upstream.contiguous(), self.transposed, None)


def _state_of(weight: Tensor) -> tuple[bool, int, int]:
    return weight.is_cpu, weight.data_ptr(), weight._version


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return packed.product(x, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.packed.gradient(upstream[0]), None, None


def can_pack(module: nn.Module) -> bool:
    """Return whether a module is a frozen linear map on a CPU for which oneDNN has kernels in its dtype."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and not module.weight.requires_grad
        and torch.backends.mkldnn.is_available()
        and _has_kernels(module.weight.dtype)
    )


def _has_kernels(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Other processors' kernels have not been measured.
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512"))


def packed_weight(module: nn.Module) -> Packed | None:
    """Return the packed weight of a linear map that is still frozen and unchanged since packing; else None."""
    found: Packed | None = vars(module).get("packed")
    if found is None or found.weight is not module.weight or module.weight.requires_grad or not found.is_current:
        return None
    return found


def pack(modules: Iterable[nn.Module], megabytes: int) -> int:
    """Pack linear maps until their copies, earlier ones included, fill `megabytes`; return how many were packed."""
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
        module.forward = MethodType(_forward, module)  # type: ignore[method-assign]  # bound, so that a copy has its own
        packed += 1
    return packed


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    packed = packed_weight(module)  # None while it is trained: its gradient would be lost
    if packed is None or x.dtype != module.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return nn.functional.linear(x, module.weight, module.bias)
    return _PackedLinear.apply(x, packed, module.bias)
