"""A linear map with DMA adapters beside it."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from perceptune.methods.dma._errors import DMAError
from perceptune.methods.dma._targets import width_of
from perceptune.methods.dma.config import DMAConfig


class Factors(NamedTuple):
    """Factors that the matrices of a group share, each by the adapter's name."""

    u: nn.ParameterDict  # (r, in)
    v: nn.ParameterDict  # (out, r)
    core: nn.ParameterDict  # (r, r, r) or (r,): the paper's lambda
    gate: nn.ParameterDict  # (r, r), of gated adapters only

    def add(self, adapter: str, config: DMAConfig, r: int, base: nn.Module, device: Any, dtype: Any) -> None:
        """Add an adapter's factors for a map like `base`: U and core initialised as in the released code, V zero."""
        n_in, n_out = width_of(base)
        self.u[adapter] = _uniform((r, n_in), 1 / math.sqrt(n_in), device, dtype)
        self.v[adapter] = _uniform((n_out, r), 0.0 if config.init_weights else 1 / math.sqrt(r), device, dtype)
        if config.core == "tucker":
            self.core[adapter] = _uniform((r, r, r), math.sqrt(3) / r, device, dtype)  # Xavier
        else:  # gives M's entries the variance they have with the Tucker core
            self.core[adapter] = nn.Parameter(torch.ones(r, device=device, dtype=dtype))
        if config.gated:
            self.gate[adapter] = _uniform((r, r), 0.0, device, dtype)


class DMALinear(nn.Module, BaseTunerLayer):
    """W0 x + b + sum over active adapters of V M^T dropout(U x).

    The shared factors belong to the `DMAModel`; a layer only refers to them, so they are saved once. Merging keeps the
    original weight, and unmerging restores that very tensor.
    """

    adapter_layer_names = ("dma_p", "dma_gamma", "dma_u", "dma_v", "dma_core", "dma_gate")
    other_param_names = ("dma_dropout",)
    dma_u: nn.ParameterDict
    dma_v: nn.ParameterDict
    dma_core: nn.ParameterDict
    dma_gate: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, group: str, factors: Factors) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(base_layer)
        self.in_features, self.out_features = width_of(base_layer)
        self.dma_p = nn.ParameterDict()
        self.dma_gamma = nn.ParameterDict()
        self.dma_dropout = nn.ModuleDict()
        self.group = group
        self._refer_to(factors)
        self.cast_input_dtype_enabled = True  # PEFT's helpers set it
        # If set: U x of the current pass, by group and adapter, with the x, for maps of one input to share. The setter
        # empties it after each pass. Not allowed with recomputation of parts of a pass (checkpointing).
        self.products: dict[tuple[int, str], tuple[Tensor, Tensor]] | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._before_merge: Tensor | None = None

    def _refer_to(self, factors: Factors) -> None:
        for name, shared in factors._asdict().items():
            self.__dict__[f"dma_{name}"] = shared  # referred to, not owned

    def update_layer(
        self, adapter: str, group: str, factors: Factors, config: DMAConfig, r: int, device: torch.device
    ) -> None:
        """Add an adapter of rank `r` on `device`, and its factors if this is the first matrix of the group."""
        base = self.get_base_layer()
        dtype = self._get_base_layer_device_and_dtype(base)[1]
        dtype = dtype if dtype.is_floating_point else torch.float32
        self.group = group
        self._refer_to(factors)
        if adapter not in factors.u:
            factors.add(adapter, config, r, base, device, dtype)
        self.dma_p[adapter] = _uniform((r,), math.sqrt(6 / (r + 1)), device, dtype)  # Xavier
        self.dma_dropout[adapter] = nn.Dropout(config.dropout).train(self.training)
        if config.gamma is not None:
            size = 1 if config.gamma == "scalar" else self.out_features
            self.dma_gamma[adapter] = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def containers(self) -> list[nn.ParameterDict]:
        """Return all that holds parameters by adapter, its own and the group's."""
        return [getattr(self, name) for name in self.adapter_layer_names]

    def forget(self, adapter: str) -> None:
        """Remove an adapter with the factors of its group; which adapters are active stays as it is."""
        for name in (*self.adapter_layer_names, *self.other_param_names):
            if adapter in (container := getattr(self, name)):
                del container[adapter]

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """Return (..., out) for (..., in), in the dtype of the frozen map's output.

        With `adapter_names`, one for each row of x, a row uses its adapter instead of the active ones; the adapter
        `__base__` is none. Raises `DMAError` if their number is not that of the rows.
        """
        if adapter_names is not None and len(adapter_names) != len(x):
            raise DMAError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        used = [name for name in adapter_names or self.active_adapters if name in self.dma_p]
        if self.disable_adapters or self.merged or not used:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if adapter_names is not None:
            return self._by_row(x, result, adapter_names)
        delta = sum(self._delta(name, x, result) for name in used)
        return (result + delta).to(result.dtype)

    def _by_row(self, x: Tensor, result: Tensor, names: Sequence[str]) -> Tensor:
        """Return the frozen map's result with the delta of its adapter added to each row that has one."""
        for adapter in dict.fromkeys(names):
            if adapter in self.dma_p:
                rows = torch.tensor([row for row, name in enumerate(names) if name == adapter], device=result.device)
                part = result[rows]
                delta = self._delta(adapter, x[rows.to(x.device)], part)
                result = result.index_copy(0, rows, (part + delta).to(result.dtype))
        return result

    def _delta(self, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        """Return (..., out): the adapter's addition to the frozen map's result."""
        u, v, mode = self._matrices(adapter, x.device)
        if not self.cast_input_dtype_enabled:  # then it is x that keeps its dtype
            u, v, mode = u.to(x.dtype), v.to(x.dtype), mode.to(x.dtype)
        h = self._reduced(adapter, x, u)
        dropout: Any = self.dma_dropout[adapter]
        kept: Tensor = dropout(h)
        if adapter in self.dma_gate:
            kept = kept * (2 * torch.sigmoid(functional.linear(h, self._factor("gate", adapter, x.device).to(h.dtype))))
        delta = functional.linear(kept @ mode if mode.dim() == 2 else kept * mode, v)
        if adapter in self.dma_gamma:
            bias = self.bias
            frozen = result.to(u.dtype) if bias is None else result.to(u.dtype) - bias.to(result.device, u.dtype)
            delta = delta + (self._factor("gamma", adapter, x.device).to(u.dtype) - 1) * frozen
        return delta

    def _reduced(self, adapter: str, x: Tensor, u: Tensor) -> Tensor:
        """Return U x (..., r), from another matrix of the group if that had the same x as input."""
        if self.products is None:
            return functional.linear(self._cast_input_dtype(x, u.dtype), u)
        key = (id(self.dma_u), adapter)
        found = self.products.get(key)
        if found is None or found[0] is not x:
            found = self.products[key] = (x, functional.linear(self._cast_input_dtype(x, u.dtype), u))
        return found[1]

    def _factor(self, kind: str, adapter: str, device: torch.device) -> Tensor:
        """Return U, V, the core, ... on `device`: the matrices of a group may be spread over several."""
        factor: Tensor = getattr(self, f"dma_{kind}")[adapter]
        return factor.to(device)

    def _matrices(self, adapter: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, V, and M: (r, r), or its diagonal (r,)."""
        u, v, core, p = (self._factor(kind, adapter, device) for kind in ("u", "v", "core", "p"))
        return u, v, core @ p if core.dim() == 3 else core * p

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return V M^T U, and (Gamma - 1) W0, in the frozen weight's layout: (out, in), for a Conv1D (in, out)."""
        base, device = self.get_base_layer(), self.dma_p[adapter].device
        u, v, mode = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in self._matrices(adapter, device))
        delta = v @ (mode.T @ u if mode.dim() == 2 else mode[:, None] * u)
        delta = delta.T if isinstance(base, Conv1D) else delta
        if adapter in self.dma_gamma:
            factor = (self.dma_gamma[adapter] - 1).to(delta.dtype)
            frozen = base.weight if self._before_merge is None else self._before_merge
            delta = delta + (factor if isinstance(base, Conv1D) else factor[:, None]) * frozen.to(delta)
        return delta

    def why_not_mergeable(self, adapters: Sequence[str]) -> str | None:
        """Return why these adapters cannot be merged into the weight; None if they can."""
        if gated := [name for name in adapters if name in self.dma_gate and name in self.dma_p]:
            return f"adapter `{gated[0]}` is gated: what it adds depends on the input, and no weight can hold that"
        weight: Any = self.get_base_layer().weight
        if self.quantization_backend is not None or not weight.is_floating_point():
            return (
                "its weight is quantised, and rounding the sum would lose what was learned: load the model "
                "unquantised, merge there, then quantise"
            )
        return None

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters (default: the active ones) to the frozen weight.

        With `safe_merge`, reject a weight that would not be finite. Raises `DMAError` for adapters that cannot merge.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.dma_p]
        if not names:
            return
        if reason := self.why_not_mergeable(names):
            raise DMAError(f"DMA cannot be merged: {reason}")
        weight = self.get_base_weight()
        total = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for name in names:
            total = total + self.get_delta_weight(name).to(total)
            if safe_merge and not torch.isfinite(total).all():
                raise DMAError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        if self._before_merge is None:
            self._before_merge = weight
        self.set_base_weight(total.to(weight.dtype))
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Restore the weight from before merging, bit by bit."""
        if self._before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        now = self.get_base_weight()
        self.set_base_weight(self._before_merge.to(device=now.device, dtype=now.dtype))
        self._before_merge = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return whether the adapter's delta is a matrix of rank r, i.e. does not depend on the input."""
        return adapter_name not in self.dma_gate

    def __repr__(self) -> str:
        return "dma." + super().__repr__()


def _uniform(shape: tuple[int, ...], bound: float, device: Any, dtype: Any) -> nn.Parameter:
    """Draw in float32 whatever the dtype, so that a bfloat16 model starts near a float32 one."""
    return nn.Parameter(torch.empty(shape, device=device).uniform_(-bound, bound).to(dtype))
