"""Downscaling of large images while they are decoded, to bound memory."""

import atexit
import math
import sys
from collections.abc import Hashable

from PIL import Image

from perceptune.data.media.rgb import is_deep, to_rgb, turn_of, upright_rgb
from perceptune.data.media.suffixes import MAX_PIXELS

MAX_DECODED_BYTES = 2 * 2**30
_AVERAGED = ("L", "RGB", "RGBA", "CMYK")  # modes in which pixels can be averaged directly
_ONE_BYTE = ("1", "L", "P")  # modes of one byte per pixel; in all others they take four
_DEEP_BYTES = 20  # per pixel while an image of more than eight bits per channel is converted
_COPIES = {"WEBP": 3, "AVIF": 3, "HEIF": 3}  # of the decoded image, made by the decoder
_PROGRESSIVE_BYTES = 6  # per pixel: the decoder keeps the coefficients of the whole image
_BAND = 2**20  # pixels converted at a time
_shrunk: set[int] = set()  # hashes of the images that were scaled down


def divisor_of(size: tuple[int, int], within: int) -> int:
    """Return the whole number by which both sides are divided, so that at most about `within` pixels remain."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / within)))


def decoded_bytes(image: Image.Image, within: int) -> int:
    """Return the memory for decoding an opened image, after setting a JPEG to be decoded at a smaller size."""
    progressive = _PROGRESSIVE_BYTES * math.prod(image.size) if image.info.get("progressive") else 0
    divisor = divisor_of(image.size, within)
    if image.mode in _AVERAGED:
        image.draft(None, (image.width // divisor, image.height // divisor))
    each = _DEEP_BYTES if _is_whole(image) else 1 if image.mode in _ONE_BYTE else 4
    return progressive + each * _COPIES.get(image.format or "", 1) * math.prod(image.size)


def shrunk(image: Image.Image, within: int) -> Image.Image | None:
    """Return the image that was passed to `decoded_bytes` as RGB with both sides divided by a whole number.

    It is converted to RGB after averaging or in bands, never at full size. Return None for an image of more than eight
    bits per channel, whose scale depends on all pixels.
    """
    if _is_whole(image):
        return None
    divisor = divisor_of(image.size, within)
    if image.mode in _AVERAGED and "transparency" not in image.info:
        image.load()
        return upright_rgb(image.reduce(divisor))
    turn = None if image.format == "TIFF" else turn_of(image)
    image.load()
    small = Image.new("RGB", (-(-image.width // divisor), -(-image.height // divisor)))
    rows = max(1, _BAND // image.width // divisor) * divisor
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(to_rgb(band).reduce(divisor), (0, top // divisor))
    return small if turn is None else small.transpose(turn)


def count_shrunk(key: Hashable) -> None:
    """Count an image for `print_shrunk`, once for each key."""
    _shrunk.add(hash(key))


@atexit.register
def print_shrunk() -> None:
    """Print on stderr how many images were scaled down since the last call, if any."""
    if _shrunk:
        count = f"{len(_shrunk):,} image{'s' if len(_shrunk) > 1 else ''}"
        were = "were" if len(_shrunk) > 1 else "was"
        limit = MAX_PIXELS // 1_000_000
        print(f"{count} above {limit} megapixels {were} scaled down while decoding", file=sys.stderr)
        _shrunk.clear()


def _is_whole(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F")) or is_deep(image)
