"""Damaged media: real files changed by chance, and by those who know their formats."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import av
import numpy as np
from PIL import Image

import clips
import sounds

# Numbers at the edges of what a field holds, and counts that nobody has.
EDGES = (0, 1, 2, 127, 128, 255, 32_767, 65_535, 10**9, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
# Behind these come sizes, counts and dimensions.
TAGS = (
    b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"eXIf", b"acTL", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda",
    b"\xff\xe1",
    b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"GIF8", b"BM", b"II*\0", b"ispe", b"iloc",
    b"fmt ", b"data", b"fLaC", b"OggS", b"vorbis", b"LAME", b"Xing",
    b"ftyp", b"moov", b"mvhd", b"tkhd", b"mdhd", b"stsd", b"stts", b"stsz", b"stsc", b"stco", b"ctts", b"avcC", b"avc1",
    b"mdat", b"avih", b"strh", b"strf", b"idx1", b"\x1aE\xdf\xa3", b"\x16T\xaek", b"\x1fC\xb6u",
)  # fmt: skip


@cache
def seeds() -> Mapping[str, tuple[tuple[str, bytes], ...]]:
    """Small sound files of each modality, by a name for each."""
    pictures = []
    for kind, mode, more in (
        ("png", "RGB", {}), ("png", "P", {}), ("png", "I;16", {}), ("png", "RGBA", {}), ("jpeg", "RGB", {}),
        ("jpeg", "CMYK", {}), ("jpeg", "L", {"progressive": True}), ("webp", "RGB", {}),
        ("webp", "RGBA", {"lossless": True}),
        ("gif", "P", {"save_all": True}), ("bmp", "RGB", {}), ("bmp", "1", {}),
        ("tiff", "RGB", {"compression": "tiff_lzw"}), ("tiff", "I;16", {}), ("avif", "RGB", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        noisy = Image.frombytes("RGB", (23, 19), random.Random(0).randbytes(23 * 19 * 3))
        made = noisy.convert("L").convert(mode) if mode == "I;16" else noisy.convert(mode)
        extra = {"append_images": [made.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in more else {}
        made.save(file, kind, **more, **extra)
        pictures.append((f"{kind}-{mode}", file.getvalue()))
    wave = sounds.noise(0.2)
    heard = [(kind, sounds.encoded(wave, kind=kind)) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")]
    seen = [("-".join(kind[:2]), clips.clip(range(6), kind)) for kind in clips.KINDS]
    seen.append(("mp4-with-sound", clips.clip(range(6), sound=True)))
    frames = [Image.fromarray(clips.painted(number)) for number in range(3)]
    for kind in ("webp", "png", "avif"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        seen.append((f"moving-{kind}", file.getvalue()))
    return {"image": tuple(pictures), "audio": (*heard, ("M4A", _m4a())), "video": tuple(seen)}


def _m4a() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        track: Any = out.add_stream("aac", rate=16_000)
        wave = sounds.noise(0.2).T.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux([*track.encode(frame), *track.encode()])
    return file.getvalue()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four changes of a file; of a PNG the checksums are mended mostly, so that its decoder gets to see them."""
    broken = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        chance.choice(CHANGES)(broken, chance)
        if not broken:
            broken += b"\0"
    if broken.startswith(b"\x89PNG") and chance.random() < 0.8:
        broken = bytearray(_mended(bytes(broken)))
    return bytes(broken[: 4 * len(data) + 10_000])


def drawn(modality: str, chance: random.Random) -> tuple[str, bytes]:
    """A damaged file and what it was: mostly of this modality, at times of another one, at times two in one."""
    of = modality if chance.random() < 0.9 else chance.choice(sorted(seeds()))
    name, data = chance.choice(seeds()[of])
    if chance.random() < 0.1:  # one file's head on another one's body
        other, body = chance.choice(seeds()[chance.choice(sorted(seeds()))])
        cut = chance.choice([8, 16, 32, 64, len(data) // 2])
        name, data = f"{name}+{other}", data[:cut] + body[chance.choice([0, cut]) :]
    return name, mutated(data, chance)


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _field(data: bytearray, chance: random.Random) -> None:
    """A number of 2, 4 or 8 bytes at the edge of what it can be, mostly where a format keeps one."""
    place = _place(data, chance)
    found = [at for tag in TAGS if (at := data.find(tag)) >= 0]
    if found and chance.random() < 0.7:
        tag = chance.choice(found)
        place = max(0, tag + chance.choice([-4, 2, 3, 4, 5, 8, 12, 16, 20, 24, 28, 32, 40]))
    size = chance.choice("HIIIQ")
    packed = struct.pack(chance.choice("<>") + size, chance.choice(EDGES) % 2 ** (8 * struct.calcsize(size)))
    data[place : place + len(packed)] = packed


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _without(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randint(1, 64)]


def _twice(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    block = data[start : start + chance.randint(1, 256)]
    data[start:start] = block * chance.choice([1, 1, 2, 20])


def _noise(data: bytearray, chance: random.Random) -> None:
    start, block = chance.randrange(len(data)), chance.randbytes(chance.randint(1, 64))
    data[start : start + chance.choice([0, len(block)])] = block


def _zeros(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    length = min(chance.randint(1, 256), len(data) - start)
    data[start : start + length] = bytes(length)


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _byte, _field, _field, _field, _cut, _without, _twice, _noise, _zeros,
)  # fmt: skip


def _place(data: bytearray, chance: random.Random) -> int:
    """Anywhere, half of the time near the start, where headers are."""
    return chance.randrange(min(len(data), 200) if chance.random() < 0.5 else len(data))


def _mended(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have."""
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + size]
        out += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + size
    return bytes(out + data[place:])
