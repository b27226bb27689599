"""Synthetic images, videos and audio from a random generator: the same state of it gives the same file."""

import math
import random
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Wave = NDArray[np.float64]
Point = tuple[float, float]

COLORS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 80, 200), "yellow": (240, 210, 30),
    "purple": (150, 60, 180), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
_SIDE = 112  # pixels
_FRAMES, _RATE = 16, 8  # of a video: two seconds
_BLINK = 8  # frames from one blink to the next
_HZ = 16_000  # of an audio file


def draw_image(chance: random.Random, color: str, shape: str) -> bytes:
    """Draw a shape on a dark background as a PNG."""
    buffer = BytesIO()
    radius = chance.uniform(16, 34)
    _drawn(_ground(chance), color, shape, _place(chance, radius), radius, chance.uniform(-0.3, 0.3)).save(buffer, "PNG")
    return buffer.getvalue()


def draw_video(chance: random.Random, color: str, shape: str, blinks: bool) -> bytes:
    """Draw an MP4 of a shape that moves between two distant positions, hidden half of the time if it blinks."""
    import av

    radius, turn, ground = chance.uniform(14, 26), chance.uniform(-0.3, 0.3), _ground(chance)
    start = end = _place(chance, radius)
    while math.dist(start, end) < _SIDE / 3:
        start, end = _place(chance, radius), _place(chance, radius)
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=_RATE, options={"qscale": "3"})
        stream.width, stream.height, stream.pix_fmt = _SIDE, _SIDE, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for number in range(_FRAMES):
            part = number / (_FRAMES - 1)
            at = (start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1]))
            image = Image.new("RGB", (_SIDE, _SIDE), ground)
            if not blinks or number % _BLINK < _BLINK // 2:
                image = _drawn(ground, color, shape, at, radius, turn)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return buffer.getvalue()


def play(chance: random.Random, name: str, times: int, *, seconds: float = 2.0) -> bytes:
    """Synthesise a FLAC file with an audio event repeated `times` times, separated by silence."""
    import soundfile

    wave = np.zeros(round(seconds * _HZ))
    length = round(chance.uniform(0.3, 0.45) * _HZ)
    gap = round(chance.uniform(0.1, 0.18) * _HZ)
    first = round(chance.uniform(0.02, 0.1) * _HZ)
    for number in range(times):
        start = first + number * (length + gap)
        wave[start : start + length] = AUDIO_EVENTS[name](chance, length) * _faded(length)
    wave *= chance.uniform(0.3, 0.8)
    wave += np.random.default_rng(chance.getrandbits(32)).normal(0, 0.0005, len(wave))
    buffer = BytesIO()
    soundfile.write(buffer, wave, _HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _ground(chance: random.Random) -> tuple[int, int, int]:
    return (chance.randint(0, 60),) * 3


def _place(chance: random.Random, radius: float) -> Point:
    return chance.uniform(radius, _SIDE - radius), chance.uniform(radius, _SIDE - radius)


def _drawn(
    ground: tuple[int, int, int], color: str, shape: str, at: Point, radius: float, turn: float
) -> Image.Image:  # fmt: skip
    image = Image.new("RGB", (_SIDE, _SIDE), ground)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=COLORS[color])
        return image
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    turn += math.pi / 4 if shape == "square" else 0.0  # upright
    angles = [turn + 2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    reach = [radius * (0.45 if shape == "star" and i % 2 else 1.0) for i in range(corners)]
    outline = [(at[0] + r * math.cos(a), at[1] + r * math.sin(a)) for a, r in zip(angles, reach, strict=True)]
    draw.polygon(outline, fill=COLORS[color])
    return image


def _sweep(length: int, first: float, last: float) -> Wave:
    """Return a sine whose frequency in Hz changes linearly from `first` to `last`."""
    frequency = np.linspace(first, last, length)
    return np.sin(2 * np.pi * np.cumsum(frequency) / _HZ)


def _chirp(chance: random.Random, length: int, first: float, last: float) -> Wave:
    return _sweep(length, first * chance.uniform(0.8, 1.25), last * chance.uniform(0.8, 1.25))


def _faded(length: int) -> Wave:
    """Return an envelope with fades of 10 ms, which prevent clicks."""
    edge = _HZ // 100
    ramp = np.minimum(np.arange(length), np.arange(length)[::-1]) / edge
    return np.minimum(ramp, 1.0)


AUDIO_EVENTS: dict[str, Callable[[random.Random, int], Wave]] = {
    "a low tone": lambda chance, length: _sweep(length, *[chance.uniform(150, 300)] * 2),
    "a high tone": lambda chance, length: _sweep(length, *[chance.uniform(2_500, 5_000)] * 2),
    "a rising chirp": lambda chance, length: _chirp(chance, length, 400, 4_000),
    "a falling chirp": lambda chance, length: _chirp(chance, length, 4_000, 400),
    "noise": lambda chance, length: np.random.default_rng(chance.getrandbits(32)).uniform(-0.7, 0.7, length),
}
