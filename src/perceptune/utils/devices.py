"""The device of a process and its float32 precision."""

import os

import torch


def default_device() -> torch.device:
    """Return the GPU of this process, else the CPU.

    Each of several processes that a launcher started on one machine has the GPU of its LOCAL_RANK. If Accelerate is
    set to use the CPU, return the CPU.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def resolve_device(wanted: str | torch.device | None) -> torch.device:
    """Return the device `wanted`: the default one for None, this process's GPU for `cuda` without a number."""
    if wanted is None:
        return default_device()
    device = torch.device(wanted)
    return default_device() if device.type == "cuda" and device.index is None else device


def device_like(kind: str | None) -> torch.device:
    """Return a device to repeat a computation that ran on one of this kind (`cpu`, `cuda`; None = unknown)."""
    return torch.device("cpu") if kind == "cpu" else default_device()


def use_full_float32(device: torch.device) -> None:
    """Disable the reduced precision (TF32) in which cuDNN computes float32 convolutions by default.

    With TF32 the first convolution of an encoder gives features that differ from a CPU's in the fourth digit, under
    the same key of the feature cache. For matrix products torch's default is full precision already.
    """
    if device.type != "cuda":
        return
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:  # before torch 2.9
        torch.backends.cudnn.allow_tf32 = False
