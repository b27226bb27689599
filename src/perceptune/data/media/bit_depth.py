"""Images of more than eight bits a channel, brought to the eight that encoders take."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# How many bits cameras and scanners fill. A file of 16 bits does not say how many of them are in use.
_DEPTHS = (8, 10, 12, 14, 16)
_DARK = 1 << 14 - 8  # of the upper byte: from here on a value takes more than 14 bits


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values scaled to 0..255.

    Whole numbers keep the upper eight of the fewest bits among 8, 10, 12, 14 and 16 that hold the greatest; fractions
    are taken for 0..1 or for 0..255 if they all lie there. Everything else goes from its least value to its greatest.
    Raises `ValueError` for what is not a number.
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
    """Whether the upper bytes of an image of 16 bits leave it nearly black: perhaps the others hold it."""
    colours = image.getextrema()[: 1 if image.mode == "LA" else 3]
    return max(high for _, high in colours) < _DARK


def redecoded(image: Image.Image, data: bytes) -> Image.Image:
    """A PNG or TIFF image of 16 bits a channel from its encoded bytes, scaled to the bits that it uses.

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
