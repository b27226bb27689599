"""Conversion of opened images to RGB: upright, transparency on white."""

from typing import Any

import numpy as np
from PIL import Image

from perceptune.data.media.bit_depth import eight_bits

_TURN = Image.Transpose
# Not `ImageOps.exif_transpose`, which also rewrites the EXIF block and fails on blocks that can be read.
_ORIENTATIONS: dict[Any, Image.Transpose] = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB copy without its file, transparency on white. Raises `ValueError` if a palette is missing."""
    if image.mode.startswith(("I", "F")):  # Pillow's conversion would limit these to 255
        values, key = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray(eight_bits(values))
        if isinstance(key, int):  # the value that is transparent
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("colours by number, and no table of them")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return the current frame of an opened image: RGB, upright, transparency on white."""
    turn = None if image.format == "TIFF" else turn_of(image)  # Pillow rotates a TIFF image itself
    image.load()
    return to_rgb(image if turn is None else image.transpose(turn))


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how an opened image must be turned to be upright, according to its EXIF block."""
    return _ORIENTATIONS.get(image.getexif().get(0x0112))


def is_deep(image: Any) -> bool:
    """Return whether an opened image that is not decoded yet has several channels of 16 bits.

    Pillow keeps only the upper byte of those.
    """
    return image.mode in ("LA", "RGB", "RGBA", "RGBX") and any(";16" in str(tile[3]) for tile in image.tile)
