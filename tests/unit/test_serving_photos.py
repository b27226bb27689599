"""Pictures larger than a server keeps: scaled down while they are decoded, upright, with the colours of the whole."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from perceptune.data.media.source import MAX_PIXELS, open_image
from perceptune.serving.limits import Limits
from perceptune.serving.media_worker import RefusedError, checked_medium

WIDE, HIGH = 640, 400
LIMITS = {"pixels": WIDE * HIGH, "kept": 70_000, "side": 4}
TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth colours, a corner of which is red."""
    image = Image.radial_gradient("L").resize((WIDE, HIGH)).convert("RGB")
    image.paste("red", (0, 0, WIDE // 4, HIGH // 4))
    return image


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("RGB", "L", "CMYK")] + [("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "1")]
    + [("BMP", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA"), ("GIF", "P")],
)  # fmt: skip
def test_a_large_picture_is_seen_smaller(photo: Image.Image, kind: str, mode: str) -> None:
    data = encoded(photo.convert(mode), kind)
    seen = Image.open(BytesIO(checked_medium(data, "image", LIMITS)))
    assert (seen.format, seen.mode, seen.size) == ("BMP", "RGB", (WIDE // 2, HIGH // 2))
    whole = open_image(data)
    assert whole.size == (WIDE, HIGH)
    small, large = (np.asarray(one.resize((20, 20), Image.Resampling.BOX), int) for one in (seen, whole))
    assert np.abs(small - large).mean() < 2


def test_it_is_turned_upright_and_set_on_white(photo: Image.Image) -> None:
    turned = checked_medium(encoded(photo, "JPEG", exif=TURNED), "image", LIMITS)
    seen = Image.open(BytesIO(turned))
    assert seen.size == (HIGH // 2, WIDE // 2)
    red = seen.getpixel((HIGH // 2 - 5, 5))
    assert isinstance(red, tuple)
    assert red[0] > 200 > 60 > red[1]
    clear = photo.convert("RGBA")
    clear.putalpha(0)
    seen = Image.open(BytesIO(checked_medium(encoded(clear, "PNG"), "image", LIMITS)))
    assert seen.getextrema() == ((255, 255),) * 3


def test_what_is_small_enough_stays_as_it_is(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG")
    plain = Image.open(BytesIO(checked_medium(data, "image", {**LIMITS, "kept": WIDE * HIGH})))
    assert plain.tobytes() == open_image(data).tobytes()


def test_a_jpeg_is_never_decoded_whole(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], JpegImagePlugin.JpegImageFile.load

    def noting(self: Any) -> Any:
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", noting)
    checked_medium(encoded(photo, "JPEG"), "image", LIMITS)
    assert {*loaded} == {(WIDE // 2, HIGH // 2)}


def test_narrow_ones_are_scaled_down_too() -> None:
    data = encoded(Image.new("RGB", (60_000, 4), "teal"), "PNG")
    assert Image.open(BytesIO(checked_medium(data, "image", LIMITS))).size == (30_000, 2)
    with pytest.raises(RefusedError, match="the least is 4 x 4"):
        checked_medium(encoded(Image.new("RGB", (60_000, 3)), "PNG"), "image", LIMITS)


def test_as_large_as_the_command_takes() -> None:
    assert Limits().image_pixels == MAX_PIXELS
    assert Limits().image_kept_pixels < MAX_PIXELS
