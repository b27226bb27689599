"""PNG files written chunk by chunk, for what Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from numpy.typing import NDArray

GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, however wrong."""
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def png_header(width: int, height: int, kind: int = COLOUR, depth: int = 8) -> tuple[bytes, bytes]:
    """The chunk that claims a size; kind 3 are colours by number."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)


def deep_png(values: NDArray[Any], kind: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a channel: (H, W) or (H, W, channels) values up to 65535, with `more` chunks before them."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_header(values.shape[1], values.shape[0], kind, 16)
    return png(header, *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
