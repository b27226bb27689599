"""FSDP settings of `accelerate config`, read and checked before anything is loaded."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from perceptune.errors import UserError


@dataclass(frozen=True)
class FSDPSettings:
    """The FSDP settings of `accelerate config` that apply to frozen weights."""

    reshard_after_forward: bool  # False: a block stays gathered until the backward pass: faster, more memory
    cpu_offload: bool  # whether shards are kept in main memory
    param_dtype: torch.dtype | None  # of gathered weights; None = as loaded (`train.precision`)


def _wanted() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def require_known_version() -> None:
    """Raise `UserError` for FSDP version 1, with which Accelerate itself fails on CPUs."""
    if _wanted() and int(os.environ.get("FSDP_VERSION", "1")) != 2:
        raise UserError("accelerate: FSDP version 1 is not supported: set `fsdp_version: 2`")


def requested_sharding(accelerator: Any) -> FSDPSettings | None:
    """Return Accelerate's FSDP settings, None without FSDP. Raises `UserError` for settings unfit for frozen weights.

    They are read from the environment variables of `accelerate launch`, because Accelerate ignores them on CPUs.
    """
    precision = str(accelerator.mixed_precision)
    if not _wanted():
        if precision != "no":
            raise UserError(f"accelerate: `mixed_precision: {precision}`: set it to `no` and choose `train.precision`")
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    if not dist.is_initialized():
        return None  # not launched: one process has nothing to shard over
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
