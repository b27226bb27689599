"""Which device a process computes on, and with which precision."""

import os

import torch


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
