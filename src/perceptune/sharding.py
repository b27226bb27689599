"""FSDP for the frozen LM: each process holds a part of its weights and gathers a block when it runs.

Nothing frozen has a gradient, so weights are only ever gathered. The method stays whole on every process. All processes
must run the same blocks equally often, in the same order, forward and backward.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm import FrozenLM


@dataclass(frozen=True)
class Sharding:
    """What `accelerate config` says about FSDP, as far as it means something for frozen weights."""

    reshard_after_forward: bool  # False: a block stays whole until the backward pass; faster, and needs the memory
    cpu_offload: bool  # the parts wait in main memory
    param_dtype: torch.dtype | None  # of gathered weights; None = as loaded (`train.precision`)

    def apply(self, lm: FrozenLM, first_layer: int, device: torch.device) -> None:
        """Shards an LM in place, block by block, and moves it to the device.

        Backward passes reach down to `first_layer` in every batch, whatever media it has.
        """
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        if getattr(lm.model, "is_quantized", False):
            raise UserError("accelerate: FSDP cannot share out an LM with `lm.quantization`: choose one of the two")
        options: dict[str, Any] = {
            "mesh": dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),)),
            "reshard_after_forward": self.reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(param_dtype=self.param_dtype),
        }
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy()
        # A method calls `project_prompt` outside the LM's forward pass, where only whole weights can be used.
        whole = {p for name, p in lm.model.named_parameters() if "project_in" in name.split(".")}
        for parameter in whole:
            parameter.data = parameter.data.to(device)
        for layer in lm.layers:
            fully_shard(layer, **options)
        fully_shard(lm.model, ignored_params=whole, **options)
        lm.layers[first_layer].register_forward_pre_hook(_with_gradient(), with_kwargs=True)
        lm.bare_head = False  # the head's weight is whole inside the LM's forward pass only
        # Our generation loop ends with its own rows, which would leave the other processes waiting inside the LM.
        lm.no_split = "its weights are spread over several processes (FSDP)"


def _wanted() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def require_known_version() -> None:
    """Raises `UserError` for FSDP version 1, over which Accelerate itself stumbles on CPUs."""
    if _wanted() and int(os.environ.get("FSDP_VERSION", "1")) != 2:
        raise UserError("accelerate: FSDP version 1 is not supported: set `fsdp_version: 2`")


def requested_sharding(accelerator: Any) -> Sharding | None:
    """Accelerate's FSDP settings, if FSDP was asked for. Raises `UserError` for those that do not fit frozen weights.

    They are read from the environment, where `accelerate launch` puts them: on CPUs Accelerate itself passes them over.
    """
    precision = str(accelerator.mixed_precision)
    if not _wanted():
        if precision != "no":
            raise UserError(f"accelerate: `mixed_precision: {precision}`: set it to `no` and choose `train.precision`")
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    if not dist.is_initialized():
        return None  # not launched: one process has nobody to share with
    try:
        plugin = FullyShardedDataParallelPlugin()
    except ValueError as error:
        raise UserError(f"accelerate: {error}") from error
    if plugin.activation_checkpointing:
        raise UserError(
            "accelerate: set `fsdp_activation_checkpointing: false` and `train.gradient_checkpointing=true`"
        )
    if plugin.ignored_modules:
        raise UserError("accelerate: `fsdp_ignored_modules` is not supported: the whole frozen LM is sharded")
    if precision not in ("no", "bf16"):
        raise UserError(f"accelerate: `mixed_precision: {precision}` with FSDP: choose `no` or `bf16`")
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    if offload and accelerator.device.type == "cpu":
        raise UserError("accelerate: `fsdp_offload_params` needs a device other than the CPU to offload from")
    return Sharding(bool(plugin.reshard_after_forward), offload, torch.bfloat16 if precision == "bf16" else None)


def _with_gradient() -> Callable[..., Any]:
    """A pre-hook whose block always takes part in the backward pass.

    Otherwise a process whose rows have no media would gather no weights there, while the others wait for it.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return None
        if args:
            return (_tracked(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _tracked(kwargs["hidden_states"])}

    return before


def _tracked(hidden: Tensor) -> Tensor:
    return hidden if hidden.requires_grad else hidden.detach().requires_grad_()
