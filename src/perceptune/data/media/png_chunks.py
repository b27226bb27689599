"""Reading of PNG files with texts or colour profiles that are too long for Pillow, without those chunks."""

import struct
import zlib
from io import BytesIO
from typing import BinaryIO

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_long_texts(file: BinaryIO) -> BinaryIO:
    """Return a PNG file from its start, or a copy without chunks that Pillow rejects."""
    file.seek(0)
    longest, most = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY // 4
    chunks = _chunks(file)
    kept, dropped = 0, set()
    for start, kind, size in chunks:
        if kind not in _TEXTS:
            continue
        length = size if kind == b"tEXt" else _unpacked_length(kind, _read_at(file, start + 8, size), longest + 1)
        if length > longest or kept + length > most:
            dropped.add(start)
        else:
            kept += length
    file.seek(0)
    return _copied(file, chunks, dropped) if dropped else file


def _chunks(file: BinaryIO) -> list[tuple[int, bytes, int]]:
    """Return offset, kind and size of each chunk up to the first damage."""
    found, start = [], len(SIGNATURE)
    while len(head := _read_at(file, start, 8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        found.append((start, kind, size))
        start += size + 12
        if kind == b"IEND":
            break
    return found


def _read_at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _unpacked_length(kind: bytes, data: bytes, most: int) -> int:
    """Return the length of a text, without decompressing more than `most` bytes."""
    _, _, rest = data.partition(b"\0")  # after the keyword
    if kind == b"iTXt":
        if not rest.startswith(b"\1"):
            return len(rest)
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # after language and translated keyword
    else:
        rest = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(rest, most))
    except zlib.error:
        return len(data)  # Pillow reports the damage


def _copied(file: BinaryIO, chunks: list[tuple[int, bytes, int]], dropped: set[int]) -> BinaryIO:
    data, out, done = file.read(), [], 0
    for start, _, size in chunks:
        if start in dropped:
            out.append(data[done:start])
            done = start + size + 12
    return BytesIO(b"".join([*out, data[done:]]))
