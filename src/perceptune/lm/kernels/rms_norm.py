"""Root-mean-square norms of frozen LMs in fewer passes over memory, forward and backward."""

from collections.abc import Iterable
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, wide: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        rate = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, wide, rate)
        return (x * rate).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, wide, rate = ctx.saved_tensors
        (gradient,), size = upstream, x.shape[-1]
        # The gradient of a layer norm whose mean is 0, plus the part that a layer norm removes by subtracting the mean.
        centred: Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), x, [size], torch.zeros_like(rate), rate, wide, wide, [True, False, False]
        )[0]
        mean = torch.mv(gradient.reshape(-1, size), weight).view(rate.shape).float().div_(size)
        return centred.add_((mean * rate).to(x.dtype)), None, None, None


def fuse_rms_norms(modules: Iterable[nn.Module]) -> int:
    """Replace frozen norms on a CPU by the fused computation if it gives the same; return how many were replaced."""
    return sum(_fuse(module) for module in modules)


def _fuse(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or not isinstance(eps, float):
        return False
    if "forward" in vars(module) or weight.device.type != "cpu" or weight.dim() != 1:
        return False
    x = torch.linspace(-3, 2, 4 * len(weight), dtype=weight.dtype).view(4, -1)
    with torch.no_grad():  # families differ: Gemma's weight, for example, is added to 1
        if not torch.allclose(  # `forward`: what hooks, such as a method's trained scale, do to its output is not asked
            module.forward(x),
            _RMSNorm.apply(x, weight, weight.float(), eps),
            rtol=2e-2 if x.dtype != torch.float32 else 1e-5,
        ):
            return False

    def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
        weight = cast(Tensor, self.weight)
        # Trained: only the original computes the weight's gradient. Moved: the fused one is made for CPUs.
        if weight.requires_grad or not weight.is_cpu:
            result: Tensor = type(self).forward(self, hidden_states)
        else:
            result = _RMSNorm.apply(hidden_states, weight, weight.detach().float(), eps)
        return result

    module.forward = MethodType(forward, module)  # bound, so that a copy of the module has its own
    return True
