"""Clips made with PyAV. Each frame's number is painted into it, to be read back after decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

BITS, CELL = 8, 16  # a number is two rows of four black or white squares
WIDTH, HEIGHT = 4 * CELL, 2 * CELL
TICK = Fraction(1, 30)
# container, codec, pixel format
KINDS = [
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "mpeg4", "yuv420p"),
    ("matroska", "libx264", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("mpegts", "mpeg2video", "yuv420p"),
]


def painted(number: int) -> np.ndarray[Any, Any]:
    """(HEIGHT, WIDTH, 3) uint8."""
    bits = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8).reshape(2, 4)
    return bits.repeat(CELL, 0).repeat(CELL, 1)[..., None].repeat(3, 2)


def read(image: Image.Image) -> int:
    """The number in a picture of any size."""
    cells = np.asarray(image.convert("L").resize((4, 2), Image.Resampling.BOX)).reshape(-1)
    return sum(int(cell > 127) << bit for bit, cell in enumerate(cells))


def clip(times: Iterable[int], kind: tuple[str, str, str] = KINDS[0], sound: bool = False, **options: str) -> bytes:
    """Frames 0, 1, 2, ... that begin at these times, in thirtieths of a second."""
    times = list(times)
    return encoded([painted(number) for number in range(len(times))], times, kind, sound, **options)


def encoded(
    frames: Sequence[np.ndarray[Any, Any]], times: Sequence[int], kind: tuple[str, str, str] = KINDS[0],
    sound: bool = False, **options: str,
) -> bytes:  # fmt: skip
    """The bytes of a clip, with a second of silence beside it if wanted."""
    container, codec, pixels = kind
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as out:
        if frames:
            stream: Any = out.add_stream(codec, rate=30, options=options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = pixels
            stream.codec_context.time_base = TICK
        track: Any = out.add_stream("aac", rate=16_000) if sound else None
        for pixel, moment in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixel, format="rgb24" if pixel.shape[2] == 3 else "rgba")
            frame.pts, frame.time_base = moment, TICK
            out.mux(stream.encode(frame))
        if frames:
            out.mux(stream.encode())
        if track is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16_000
            out.mux([*track.encode(silence), *track.encode()])
    return buffer.getvalue()


def save_clips(folder: Path, count: int = 4) -> list[Path]:
    """Small clips of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        path.write_bytes(encoded([painted(number + step) for step in range(number + 1)], range(number + 1)))
        paths.append(path)
    return paths
