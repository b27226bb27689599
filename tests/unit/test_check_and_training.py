"""Awkward media: what `data check --decode` calls clean, a training takes, and the reverse."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clips
import planted
import sounds
from perceptune.config.schema import EncoderConfig
from perceptune.data.media import video
from perceptune.data.media.source import MediaError
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.media_loader import MediaLoader, MediaView
from perceptune.models.slots.build import load_encoder_of
from perceptune.tools.datasets.validate import CheckOptions, validate_dataset
from pngs import GREY, deep_png, png, png_header

pytestmark = pytest.mark.usefixtures("own_cache")
REST = ((b"IDAT", zlib.compress(b"")), (b"IEND", b""))

LARGE = (b"IDAT", zlib.compress(bytes((1 + 9_000 // 8) * 8_000), 1))


def image(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **more: Any) -> bytes:
    file = BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(file, kind, **more)
    return file.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 10), (80 * number, 0, 0)) for number in range(3)]
    file = BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def wave(samples: Any, **more: Any) -> bytes:
    return sounds.encoded(samples, **more)


def images() -> Iterator[tuple[str, bytes]]:
    """Images by name."""
    yield from {
        "whole.jpg": image("JPEG"), "cut.jpg": image("JPEG", (400, 300))[:-900], "cut.png": image("PNG")[:-30],
        "end.png": image("PNG")[:-12], "cut.webp": image("WEBP")[:-20], "cut.gif": image("GIF")[:-3],
        "cmyk.jpg": image("JPEG", mode="CMYK"), "strip.png": image("PNG", (300_000, 1)),
        "dot.png": image("PNG", (1, 1)),
        "deep.png": deep_png(np.arange(600).reshape(20, 30).astype(np.uint16), 0), "empty.png": b"",
        "large.png": png(png_header(9_000, 8_000, GREY, 1), LARGE, REST[1]),
        "larger.png": png(png_header(60_000, 60_000), *REST),
        "memory.png": png(png_header(30_000, 30_000), *REST), "header.png": png(png_header(9_000, 8_000), *REST),
        "nothing.tif": image("TIFF", mode="F")[:-4], "values.tif": image("TIFF", mode="F"), "text.png": b"a text",
        "animated.gif": animated("GIF"), "animated.webp": animated("WEBP"), "animated.png": animated("PNG"),
        "drawing.svg": b"<svg/>", "video.png": clips.clip(range(5)), "wave.png": wave(sounds.tone()),
        "zeros.jpg": bytes(2000), "comment.jpg": image("JPEG", comment=b"x" * 60_000),
    }.items()  # fmt: skip


def audio() -> Iterator[tuple[str, bytes]]:
    """Audio by name."""
    tone, silence = sounds.tone(), np.zeros((8_000, 1))
    broken = tone.copy()
    broken[100] = np.nan
    flac = wave(tone, kind="FLAC")
    yield from {
        "whole.wav": wave(tone), "silent.wav": wave(silence), "constant.wav": wave(silence + 0.5),
        "late.wav": wave(np.concatenate([np.zeros((12 * 16_000, 1)), tone])), "none.wav": wave(tone[:0]),
        "few.wav": wave(tone[:3]), "cut.wav": wave(sounds.tone(seconds=3))[:40_000], "cut.flac": flac[: len(flac) // 2],
        "nan.wav": wave(broken, subtype="FLOAT"), "many.wav": wave(sounds.tone(channels=65)),
        "slow.wav": wave(tone, rate=500), "hours.wav": wave(silence[:3_610], rate=1), "text.wav": b"a text",
        "whole.mp3": wave(tone, kind="MP3"), "cut.ogg": wave(sounds.noise(3), kind="OGG")[:6_000],
        "video.wav": clips.clip(range(5)), "clip.wav": clips.clip(range(30), sound=True), "empty.wav": b"",
        "image.wav": image("PNG"), "zeros.wav": bytes(2000), "header.wav": wave(tone)[:44],
    }.items()  # fmt: skip


def videos() -> Iterator[tuple[str, bytes]]:
    """Videos by name."""
    clip = clips.clip(range(60))
    avi = clips.clip(range(60), ("avi", "mpeg4", "yuv420p"))
    middle = len(avi) // 2
    yield from {
        "whole.mp4": clip, "cut.mp4": clip[: len(clip) // 2], "cut.avi": avi[:middle], "one.mp4": clips.clip(range(1)),
        "late.avi": avi[:middle] + bytes(200) + avi[middle + 200 :], "cut.gif": animated("GIF")[:-3],
        "animated.gif": animated("GIF"), "animated.webp": animated("WEBP"), "animated.png": animated("PNG"),
        "still.jpg": image("JPEG"), "cut.jpg": image("JPEG", (400, 300))[:-900], "cut.webp": animated("WEBP")[:-40],
        "wave.mp4": wave(sounds.tone()), "empty.mp4": b"", "text.mp4": b"a text",
        "large.png": png(png_header(9_000, 8_000, GREY, 1), LARGE, REST[1]),
    }.items()  # fmt: skip


MEDIA = {"image": images, "audio": audio, "video": videos}


@cache
def default_encoder(modality: str) -> Encoder:
    return load_encoder_of(modality, EncoderConfig(), meta=True)


def trainings_error(modality: str, path: Path) -> str:
    """Return why a training does not take a medium; empty if it does."""
    loader = MediaLoader(default_encoder(modality), lambda one: one.digest, list)
    [loaded] = loader.load([MediaView(path)])
    return str(loaded.error or "")


@pytest.mark.parametrize("modality", MEDIA)
def test_they_agree_on_every_medium(modality: str, tmp_path: Path) -> None:
    lines, errors = [], {}
    for name, data in MEDIA[modality]():
        (tmp_path / name).write_bytes(data)
        errors[name] = trainings_error(modality, tmp_path / name)
        lines.append(planted.text(planted.good(len(lines), **{"image": ..., modality: name})))
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    options = CheckOptions(decode=True, shown=len(lines))
    found = validate_dataset(str(tmp_path / "rows.jsonl"), options=options).report["problems"]
    assert {*found} <= {"broken-medium"}
    told = {name: text for text in found["broken-medium"]["first"] for name in errors if f"/{name}: " in text}
    assert {*told} == {name for name, error in errors.items() if error}
    for name, text in told.items():
        assert text.endswith(f"`{modality}`: {errors[name]}")


def test_all_of_a_video_may_take_longer_to_decode_than_a_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clips.clip(range(10))
    monkeypatch.setattr(video, "MAX_SECONDS", -1)
    with pytest.raises(MediaError, match="takes too long"):
        video.describe_video(data)
    assert video.describe_video(data, decode=True).frames == 10
