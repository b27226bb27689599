"""FSDP as `accelerate config` asks for it: its settings, read and checked before anything is loaded."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from perceptune.errors import UserError


@dataclass(frozen=True)
class FSDPSettings:
    """What `accelerate config` says about FSDP, as far as it means something for frozen weights."""

    reshard_after_forward: bool  # False: a block stays whole until the backward pass; faster, and needs the memory
    cpu_offload: bool  # the parts wait in main memory
    param_dtype: torch.dtype | None  # of gathered weights; None = as loaded (`train.precision`)


def _wanted() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def require_known_version() -> None:
    """Raises `UserError` for FSDP version 1, over which Accelerate itself stumbles on CPUs."""
    if _wanted() and int(os.environ.get("FSDP_VERSION", "1")) != 2:
        raise UserError("accelerate: FSDP version 1 is not supported: set `fsdp_version: 2`")


def requested_sharding(accelerator: Any) -> FSDPSettings | None:
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
    return FSDPSettings(bool(plugin.reshard_after_forward), offload, torch.bfloat16 if precision == "bf16" else None)
