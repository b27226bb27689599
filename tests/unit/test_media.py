"""Images come out RGB, upright and on white; everything else is refused with the name of the file."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import support
from perceptune.data.media.source import FORMATS, ImageTransform, MediaError, View, identity, open_image
from pngs import png, png_header

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(width: int = 8, height: int = 4) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_from_bytes_and_from_a_file(tmp_path: Path, kind: str) -> None:
    data = encoded(two_halves(32, 32), kind)
    path = tmp_path / "image"
    path.write_bytes(data)
    for image in (open_image(data), open_image(path)):
        assert (image.mode, image.size) == ("RGB", (32, 32))
        left, right = np.asarray(image)[16, 4], np.asarray(image)[16, 28]
        assert left[0] > 200 > 60 > left[2]
        assert right[2] > 200 > 60 > right[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    values = np.linspace(0, 255, 64).reshape(8, 8)
    if mode == "I;16":
        source = Image.fromarray((values * 257).astype(np.uint16))
    else:
        source = Image.fromarray(values.astype(np.uint8)).convert(mode)
    image = open_image(encoded(source))
    assert image.mode == "RGB"
    if mode != "1":
        np.testing.assert_allclose(np.asarray(image), values[..., None].repeat(3, 2), atol=1)


def test_cmyk_becomes_rgb() -> None:
    image = open_image(encoded(two_halves(32, 32).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(image)[16, 4].astype(int) - RED).max() < 10


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_transparency_is_shown_on_white(mode: str) -> None:
    if mode == "RGBA":
        source = two_halves().convert("RGBA")
        source.putalpha(Image.new("L", source.size, 0))
        data = encoded(source)
    else:
        data = encoded(Image.new(mode, (4, 4), 0), transparency=0)
    assert np.asarray(open_image(data)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = two_halves()
    # What a camera held in this orientation stores: the inverse of what a viewer has to do.
    undo = {2: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6}
    stored = {
        0: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        1: lambda im: im.transpose(Image.Transpose.ROTATE_180),
        2: lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        3: lambda im: im.transpose(Image.Transpose.TRANSPOSE),
        4: lambda im: im.transpose(Image.Transpose.ROTATE_90),
        5: lambda im: im.transpose(Image.Transpose.TRANSVERSE),
        6: lambda im: im.transpose(Image.Transpose.ROTATE_270),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = stored[undo[orientation]](upright) if orientation in undo else upright
    image = open_image(encoded(source, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert np.asarray(open_image(data))[8, 8].tolist() == list(RED)


def test_a_phone_picture_of_several_images_counts_as_jpeg() -> None:
    image = open_image(encoded(two_halves(32, 32), "MPO", save_all=True, append_images=[two_halves(16, 16)]))
    assert image.size == (32, 32)


def test_one_pixel_is_enough() -> None:
    assert open_image(encoded(Image.new("RGB", (1, 1), RED))).getpixel((0, 0)) == RED


NO_PIXELS = (b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(b"", "no bytes", id="empty"),
        pytest.param(b"hello, this is text", "not an image", id="text"),
        pytest.param(encoded(two_halves(), "PPM"), "not an image", id="other format"),
        pytest.param(encoded(two_halves(64, 64), "JPEG")[:-300], "damaged", id="truncated JPEG"),
        pytest.param(encoded(two_halves(64, 64), "PNG")[:-30], "damaged", id="truncated PNG"),
        pytest.param(encoded(two_halves(64, 64), "WEBP")[:-20], "image", id="truncated WebP"),
        pytest.param(png((b"IHDR", b"short")), "damaged", id="short PNG header"),
        pytest.param(png(png_header(9, 9), NO_PIXELS, (b"\xa1\x82(\xb0", b"")), "damaged", id="unknown PNG chunk"),
        pytest.param(
            png(png_header(8, 8, 3), (b"IDAT", zlib.compress(bytes(72))), (b"IEND", b"")), "no table", id="no palette"
        ),
        pytest.param(png(png_header(12000, 12000), NO_PIXELS), "damaged", id="over Pillow's warning"),
        pytest.param(
            png(png_header(30000, 30000), NO_PIXELS),
            "30000 x 30000 pixels take 3.4 GiB when decoded; allowed are 2",
            id="over the memory",
        ),
        pytest.param(
            png(png_header(60000, 60000), NO_PIXELS),
            "60000 x 60000 pixels; allowed are 1 to 1,000,000,000",
            id="over our ceiling",
        ),
    ],
)
def test_bad_bytes_are_refused_by_name(data: bytes, complaint: str) -> None:
    with pytest.raises(MediaError, match=rf"^image: .*{complaint}"):
        open_image(data)
    with pytest.raises(MediaError, match=rf"^upload 3: .*{complaint}"):
        open_image(data, "upload 3")


def test_the_ceiling_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(MediaError, match="8 x 4 pixels; allowed are 1 to 31"):
        open_image(encoded(two_halves()), max_pixels=31)


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_never_escapes_as_another_exception(kind: str) -> None:
    refused = 0
    for broken in support.damaged(encoded(two_halves(40, 30), kind)):
        try:
            open_image(broken)
        except MediaError:
            refused += 1
    assert refused > 20


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "COCO_0042.jpg").touch()
    (tmp_path / "readme.txt").touch()
    with pytest.raises(MediaError, match=r"COCO_0043\.jpg: no such file; did you mean `COCO_0042\.jpg`\?$"):
        open_image(tmp_path / "COCO_0043.jpg")
    with pytest.raises(MediaError, match=r"zzz: no such file$"):
        open_image(tmp_path / "zzz")
    with pytest.raises(MediaError, match=r"x\.jpg: no such file: .* holds no `nowhere`$"):
        open_image(tmp_path / "nowhere" / "x.jpg")


def test_folders_and_empty_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a folder"):
        open_image(tmp_path)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(MediaError, match=r"empty\.png: the file is empty"):
        open_image(empty)


def test_a_long_strip_is_not_blown_up() -> None:
    transform = ImageTransform(256, (224, 224), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(MediaError, match="strip: 1000000 x 1 is too narrow"):
        transform(Image.new("RGB", (1_000_000, 1)), "strip")


def test_a_view_shows_half_of_the_picture_at_least() -> None:
    image = Image.new("RGB", (60, 40))
    image.putdata([(x * 4, y * 6, 0) for y in range(40) for x in range(60)])
    mirrored = 0
    for i in range(200):
        shown = View(bytes([i]), flip=True)(image)
        assert 0.45 < shown.width * shown.height / 2400 <= 1
        left, right = shown.getpixel((0, 0)), shown.getpixel((shown.width - 1, 0))
        mirrored += left[0] > right[0]  # type: ignore[index]
        assert View(bytes([i]), flip=False)(image).getpixel((0, 0))[0] <= 120  # type: ignore[index]
    assert 70 < mirrored < 130
    assert View(b"", flip=True)(Image.new("RGB", (1, 1))).size == (1, 1)


def test_identity_follows_a_file_and_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    assert identity(path) == str(path)
    path.write_bytes(b"1")
    first = identity(path)
    assert first != identity(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert identity(Path("x")) == first
    path.rename(tmp_path / "y")
    path.write_bytes(b"2")
    assert identity(path) != first
    assert identity(b"1") != identity(b"2")
