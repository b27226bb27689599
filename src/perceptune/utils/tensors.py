"""Tensors on their way: padded to one length, moved to a device without the host waiting, read in one copy."""

from collections.abc import Sequence

import torch
from torch import Tensor


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


def bytes_of(tensor: Tensor, *, most: int | None = None, dtype: torch.dtype | None = None) -> memoryview:
    """Return the bits of a tensor's values, of up to `most` evenly spaced ones, rounded to `dtype` if it is given."""
    flat = tensor.detach().flatten()
    if most is not None:
        flat = flat[:: max(flat.numel() // most, 1)][:most]
    data: memoryview = flat.to("cpu", dtype or flat.dtype).contiguous().view(torch.uint8).numpy().data
    return data


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, T) of rows padded on the left to the longest."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    return ids, last_columns(length, [len(row) for row in rows]).long()


def last_columns(length: int, numbers: Sequence[int]) -> Tensor:
    """(B, length) bool: in row i the last `numbers[i]` columns."""
    return torch.arange(length, 0, -1)[None] <= torch.tensor(numbers)[:, None]


def prepend_slot_columns(ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and position ids with `width` hidden columns in front; the text's positions do not move."""
    batch = ids.shape[0]
    ids = torch.cat([ids.new_zeros(batch, width), ids], dim=1)
    mask = torch.cat([mask.new_zeros(batch, width), mask], dim=1)
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return ids, mask, positions


def places_of_kept(keep: Tensor | None, width: int, device: torch.device) -> Tensor | None:
    """Where the columns marked in `keep` (B, T) are (N,), row after row, once `width` columns stand before the text."""
    if keep is None:
        return None
    rows, columns = keep.nonzero(as_tuple=True)
    return move(rows * (width + keep.shape[1]) + width + columns, device)
