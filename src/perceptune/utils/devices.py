"""Which device a process computes on, and how tensors get there without the host waiting for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor


def default_device() -> torch.device:
    """The GPU of this process, else the CPU.

    Of several processes that a launcher started on one machine, each has a GPU of its own: that of its LOCAL_RANK. If
    Accelerate was told to use the CPU, it is the CPU.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def resolve_device(wanted: str | torch.device | None) -> torch.device:
    """The device that is meant: the default one if none is named, this process's GPU for `cuda` without a number."""
    if wanted is None:
        return default_device()
    device = torch.device(wanted)
    return default_device() if device.type == "cuda" and device.index is None else device


def device_like(kind: str | None) -> torch.device:
    """The device to repeat on what was computed on one of this kind (`cpu`, `cuda`; None = unknown)."""
    return torch.device("cpu") if kind == "cpu" else default_device()


def use_full_float32(device: torch.device) -> None:
    """Switches off the reduced precision (TF32) that cuDNN computes float32 convolutions in by default.

    The convolution that an encoder begins with would give features that differ from a CPU's in the fourth digit, under
    the same key of the feature cache. For matrix products torch's default is full precision already.
    """
    if device.type != "cuda":
        return
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:  # before torch 2.9
        torch.backends.cudnn.allow_tf32 = False


def read_numbers(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers, those that are float32 tensors of one device in one copy: the host waits once for all of them."""
    tensors = [value.detach() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in page-locked memory, if it is to be copied to a GPU; otherwise as it is."""
    if device.type != "cuda" or tensor.device.type != "cpu" or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. On the way to a GPU the host goes on at once: the copy is queued there."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return pinned(tensor, device).to(device, non_blocking=True)
