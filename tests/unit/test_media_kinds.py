"""Pictures as cameras, scanners and phones write them: deep, long-winded, moving, under another name."""

from __future__ import annotations

import struct
import sys
import zlib
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

import pngs
from clips import painted, read
from perceptune.data.media.audio import read_audio
from perceptune.data.media.file_types import kind_of
from perceptune.data.media.source import MediaError, image_size, open_image
from perceptune.data.media.video import describe_video, read_frames
from sounds import encoded as encoded_sound
from sounds import tone

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def slope(bits: int = 8, channels: int = 3) -> NDArray[np.uint16]:
    """(12, 16, channels): values that rise from 0 to the greatest of so many bits, in each channel another way."""
    y, x = np.mgrid[0:12, 0:16]
    planes = [x / 15, y / 11, (x + y) / 26, np.ones_like(x, float)][:channels]
    return (np.stack(planes, -1) * (2**bits - 1)).round().astype(np.uint16)


def seen(data: bytes) -> NDArray[np.int64]:
    return np.asarray(open_image(data)).astype(np.int64)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_pictures_are_scaled_to_the_bits_they_use(bits: int) -> None:
    colour, grey = slope(bits), slope(bits)[..., :1]
    opaque = np.full_like(grey, 2**bits - 1)
    for data, expected in (
        (pngs.deep_png(grey[..., 0], pngs.GREY), slope()[..., :1]),
        (pngs.deep_png(colour, pngs.COLOUR), slope()),
        (pngs.deep_png(np.dstack([grey, opaque]), pngs.GREY_ALPHA), slope()[..., :1]),
        (pngs.deep_png(np.dstack([colour, opaque]), pngs.COLOUR_ALPHA), slope()),
        (pngs.deep_png(np.dstack([colour, opaque * 0 + 65535]), pngs.COLOUR_ALPHA), slope()),
    ):
        np.testing.assert_allclose(seen(data), np.broadcast_to(expected, (12, 16, 3)), atol=1)


def test_a_deep_picture_is_turned_and_its_transparency_kept() -> None:
    turned = struct.pack("<4sIHHHIII", b"II*\0", 8, 1, 0x0112, 3, 1, 6, 0)
    data = pngs.deep_png(np.rot90(slope(12)), pngs.COLOUR, (b"eXIf", turned))
    np.testing.assert_allclose(seen(data), slope(), atol=1)
    clear = np.full((4, 4), 3000, np.uint16)
    clear[0] = 7
    assert seen(pngs.deep_png(clear, pngs.GREY, (b"tRNS", struct.pack(">H", 7))))[0].min() == 255
    dark = np.zeros((4, 4, 3), np.uint16)
    assert not seen(pngs.deep_png(dark, pngs.COLOUR)).any()


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 1, np.float32), (0, 255, np.float32), (0, 65_535, np.float32), (-1, 1, np.float32), (0, 10**9, np.int32),
     (-1000, 3000, np.int32), (0, 65_535, np.int32)],
)  # fmt: skip
def test_tiff_values_of_any_range(low: float, high: float, kind: type) -> None:
    grey = slope()[..., 0]
    data = encoded(Image.fromarray((low + grey / 255 * (high - low)).astype(kind)), "TIFF")
    np.testing.assert_allclose(seen(data), grey[..., None].repeat(3, 2), atol=1)


def test_values_that_are_no_numbers_are_refused() -> None:
    data = encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    with pytest.raises(MediaError, match="values that are no numbers"):
        open_image(data)


def test_tiff_of_every_mode_and_compression() -> None:
    picture = Image.fromarray(slope().astype(np.uint8))
    for mode, compression in product(["RGB", "RGBA", "L", "CMYK", "LA"], [None, "tiff_lzw", "tiff_adobe_deflate"]):
        image = picture.convert("L").convert(mode) if mode == "LA" else picture.convert(mode)
        data = encoded(image, "TIFF", compression=compression)
        expected = np.asarray(image.convert("L" if mode == "LA" else "RGB").convert("RGB"))
        np.testing.assert_allclose(seen(data), expected, atol=1)
    pages = encoded(picture, "TIFF", save_all=True, append_images=[Image.new("RGB", (3, 3))])
    np.testing.assert_array_equal(seen(pages), np.asarray(picture))


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_once(kind: str, orientation: int) -> None:
    marked = np.full((32, 48, 3), 40, np.uint8)
    marked[:16, :16], marked[:16, 32:] = (250, 30, 30), (30, 30, 250)
    turn = Image.Transpose  # the opposite of what a viewer has to do
    undo = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
            6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}  # fmt: skip
    image = Image.fromarray(marked)
    stored = image if orientation == 1 else image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = seen(encoded(stored, kind, exif=exif))
    assert found.shape == marked.shape
    assert np.abs(found - marked).mean() < 12


def text_chunk(kind: bytes, text: bytes) -> tuple[bytes, bytes]:
    packed = zlib.compress(text)
    return kind, {
        b"zTXt": b"note\0\0" + packed,
        b"iCCP": b"profile\0\0" + packed,
        b"iTXt": b"note\0\1\0en\0nota\0" + packed,
        b"tEXt": b"note\0" + text,
    }[kind]


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt", b"tEXt"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_png_is_read_however_long_its_texts_are(kind: bytes, before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 5_000)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 20_000)
    plain = encoded(Image.fromarray(slope().astype(np.uint8)), "PNG")
    at = plain.index(before) - 4
    for length, count in ((5, 1), (6_000, 1), (4_000, 8)):
        chunk = pngs.png(text_chunk(kind, bytes(length)))[8:]
        data = plain[:at] + count * chunk + plain[at:]
        np.testing.assert_array_equal(seen(data), slope())
        assert image_size(data) == (12, 16)


def test_a_png_with_megabytes_of_text() -> None:
    plain = encoded(Image.fromarray(slope().astype(np.uint8)), "PNG")
    chunk = pngs.png(text_chunk(b"zTXt", bytes(2**20 + 1)))[8:]
    np.testing.assert_array_equal(seen(plain[:33] + chunk + plain[33:]), slope())


ANIMATIONS = [("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {"quality": 90}), ("GIF", {})]


@pytest.mark.parametrize(("kind", "options"), ANIMATIONS, ids=[kind for kind, _ in ANIMATIONS])
def test_every_frame_of_an_animation_is_seen_in_its_time(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.fromarray(painted(number)) for number in range(4)]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=[100, 100, 300, 700], loop=0, **options
    )
    assert [read(frame) for frame in read_frames(data, 12)] == [0, 1, 2, 2, 2, *[3] * 7]
    assert [read(frame) for frame in read_frames(data, 2)] == [2, 3]
    clip = describe_video(data, decode=True)
    assert (clip.width, clip.height, clip.frames, clip.seconds) == (64, 32, 4, pytest.approx(1.2))
    assert read(open_image(data)) == 0
    drawn = {tuple(map(read, read_frames(data, 4, seed=bytes([number])))) for number in range(8)}
    assert len(drawn) > 1
    assert all(list(frames) == sorted(frames) for frames in drawn)


def test_the_picture_in_front_of_an_animation_is_no_frame() -> None:
    frames = [Image.fromarray(painted(number)) for number in range(3)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True, duration=100)
    assert [read(frame) for frame in read_frames(data, 4)] == [1, 1, 2, 2]
    assert read(open_image(data)) == 0


def test_limits_hold_for_animations(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.fromarray(painted(number)) for number in range(5)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="5 frames or more; allowed are 4"):
        next(read_frames(data, 2, max_frames=4))
    with pytest.raises(MediaError, match="64 x 32 pixels; allowed are 1 to 100"):
        next(read_frames(data, 2, max_pixels=100))
    with pytest.raises(MediaError, match="decoding takes too long"):
        next(read_frames(data, 2, max_seconds=-1))
    with pytest.raises(MediaError, match="damaged image"):
        list(read_frames(data[: len(data) * 2 // 3], 2))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\n <HTML lang=en>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b'{"error": 1}', "a JSON text"),
        ("é".encode() * 300, "a text"),
        (b"../photos/1.jpg", "a text with the name of another file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\0\5\x16\7\0\2\0\0", "macOS's notes"),
        (bytes(900), "nothing but zero bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_file_really_is_is_named(data: bytes, kind: str) -> None:
    for modality, load in (
        ("image", open_image), ("audio", lambda medium: read_audio(medium, 16_000, 1.0)),
        ("video", lambda medium: next(read_frames(medium, 1))),
    ):  # fmt: skip
        with pytest.raises(MediaError, match=f"^{modality}: not an? [a-z ]+ but {kind}"):
            load(data)


def test_one_kind_under_the_name_of_another() -> None:
    picture, sound = encoded(Image.new("RGB", (4, 4)), "PNG"), encoded_sound(tone())
    with pytest.raises(MediaError, match=r"^image: not an image but a WAV audio file"):
        open_image(sound)
    with pytest.raises(MediaError, match=r"^audio: not an audio file but a PNG image"):
        read_audio(picture, 16_000, 1.0)
    with pytest.raises(MediaError, match=r"^image: damaged image .it begins as a WebP image"):
        open_image(b"RIFF\0\0\0\0WEBPVP9 ")
    with pytest.raises(MediaError, match=r"^image: not an image but an MP4 file"):
        open_image(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
    assert kind_of(b"") is kind_of(b"\x81\x82\x83") is None
    sound = encoded_sound(tone(), kind="AIFF")
    with pytest.raises(MediaError, match=r"^audio: damaged audio"):
        read_audio(sound[:20], 16_000, 1.0)


def test_a_photo_of_a_phone_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for load in (open_image, lambda medium: next(read_frames(medium, 1))):
        with pytest.raises(
            MediaError, match=r"a HEIC photo, which needs pillow-heif; run `pip install 'perceptune\[heif"
        ):
            load(HEIC)


def test_photos_of_phones_are_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    picture, buffer = Image.fromarray(slope().astype(np.uint8)).resize((64, 48)), BytesIO()
    heif.from_pillow(picture).save(buffer, quality=95)
    data = buffer.getvalue()
    assert np.abs(seen(data) - np.asarray(picture)).mean() < 6
    assert image_size(data) == (48, 64)
    assert describe_video(data).frames == 1
    with pytest.raises(MediaError, match="damaged image"):
        open_image(HEIC)
