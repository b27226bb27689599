"""Downscaling of images above the server's pixel limit while they are decoded, to bound memory."""

import math

from PIL import Image

from perceptune.data.media.source import is_deep, open_image, opened_image, upright_rgb

_AVERAGED = ("L", "RGB", "RGBA", "CMYK")  # modes in which pixels can be averaged directly


def open_within(data: bytes, name: str, *, max_pixels: int, within: int) -> Image.Image:
    """Return an image as `open_image` does, one of more than `within` pixels divided by a whole number.

    A JPEG is never decoded at full size; for other formats a second full-size copy is avoided if possible. Raises
    `MediaError`.
    """
    with opened_image(data, name, max_pixels=max_pixels) as image:
        divisor = _divisor(image.size, within)
        if divisor > 1 and image.mode in _AVERAGED and "transparency" not in image.info and not is_deep(image):
            image.draft(None, (image.width // divisor, image.height // divisor))
            image.load()
            return upright_rgb(image.reduce(_divisor(image.size, within)))
    whole = open_image(data, name, max_pixels=max_pixels)
    return whole if divisor == 1 else whole.reduce(divisor)


def _divisor(size: tuple[int, int], within: int) -> int:
    """Return the divisor of both sides."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / within)))
