"""Conversion of images with more than eight bits per channel to the eight that encoders use."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Bits that cameras and scanners use. A file of 16 bits does not state how many of them are in use.
_DEPTHS = (8, 10, 12, 14, 16)
_DARK = 1 << 14 - 8  # of the upper byte: smaller values fit into 14 bits


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale values to 0..255.

    Integers keep the upper eight of the 8, 10, 12, 14 or 16 bits that the maximum needs; floats are interpreted as 0..1
    or 0..255 if all are in that range. All other values are scaled from their minimum to their maximum. Raises
    `ValueError` for values that are not finite.
    """
    if not values.size:
        return values.astype(np.uint8)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    low, high = values.min(), values.max()
    if low >= 0 and values.dtype.kind in "iub" and high < 1 << 16:
        return (values >> _depth(int(high)) - 8).astype(np.uint8)
    if low >= 0 and high <= 255 and values.dtype.kind == "f":
        return (values * (255 if high <= 1 else 1)).round().astype(np.uint8)
    span = float(high) - float(low) or 1.0
    return ((values.astype(np.float64) - float(low)) * (255 / span)).round().astype(np.uint8)


def looks_empty(image: Any) -> bool:
    """Return whether the upper bytes of a 16-bit image are nearly black: its content may be in the lower ones."""
    colours = image.getextrema()[: 1 if image.mode == "LA" else 3]
    return max(high for _, high in colours) < _DARK


def redecoded(image: Image.Image, data: bytes) -> Image.Image:
    """Decode a PNG or TIFF image of 16 bits per channel and scale it to the bits that it uses.

    Raises `ValueError` if FFmpeg cannot read it.
    """
    import av
    from av.error import FFmpegError

    kind = "png_pipe" if image.format == "PNG" else "tiff_pipe"
    try:
        with av.open(BytesIO(data), "r", format=kind, options={"format_whitelist": kind}) as container:
            values: NDArray[Any] = next(container.decode(video=0)).to_ndarray(format="rgba64le")
    except (FFmpegError, StopIteration) as error:
        raise ValueError(f"nearly black as far as it can be read: {error}") from error
    colours, alpha = values[..., :3], values[..., 3]
    depth = _depth(int(colours.max()))
    alpha_depth = depth if alpha.max() < 1 << depth else 16
    return Image.fromarray(np.dstack([colours >> depth - 8, alpha >> alpha_depth - 8]).astype(np.uint8))


def _depth(greatest: int) -> int:
    return next(bits for bits in _DEPTHS if greatest < 1 << bits)
