"""Padding, asynchronous copies to a device, and reading numbers in one copy."""

from collections.abc import Sequence

import torch
from torch import Tensor


def read_numbers(values: Sequence[Tensor | float]) -> list[float]:
    """Return numbers for float32 scalars of one device and for floats, in one copy: the host waits only once."""
    tensors = [value.detach() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor in pinned memory if it will be copied to a GPU, else unchanged."""
    if device.type != "cuda" or tensor.device.type != "cpu" or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy the tensor to a device; to a GPU without blocking the host."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return pinned(tensor, device).to(device, non_blocking=True)


def bytes_of(tensor: Tensor, *, most: int | None = None, dtype: torch.dtype | None = None) -> memoryview:
    """Return the bytes of a tensor's values: at most `most` evenly spaced ones, in `dtype` if it is given."""
    flat = tensor.detach().flatten()
    if most is not None:
        flat = flat[:: max(flat.numel() // most, 1)][:most]
    return flat.to("cpu", dtype or flat.dtype).contiguous().view(torch.uint8).numpy().data


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad rows on the left to the longest; return ids and attention mask (B, T)."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    return ids, last_columns(length, [len(row) for row in rows]).long()


def last_columns(length: int, numbers: Sequence[int]) -> Tensor:
    """Return a bool mask (B, length): True for the last `numbers[i]` columns of row i."""
    return torch.arange(length, 0, -1)[None] <= torch.tensor(numbers)[:, None]


def prepend_slot_columns(ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prepend `width` masked columns; return ids, mask and position ids. The text's position ids do not change.

    Ids below 0, which stand for slots in the text, become 0.
    """
    batch = ids.shape[0]
    ids = torch.cat([ids.new_zeros(batch, width), ids.clamp_min(0)], dim=1)
    mask = torch.cat([mask.new_zeros(batch, width), mask], dim=1)
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return ids, mask, positions


def places_of_kept(keep: Tensor | None, width: int, device: torch.device) -> Tensor | None:
    """Return the flat indices (N,) of the columns marked in `keep` (B, T) after `width` columns were prepended."""
    if keep is None:
        return None
    rows, columns = keep.nonzero(as_tuple=True)
    return move(rows * (width + keep.shape[1]) + width + columns, device)
