"""Images above the limit: scaled down while they are decoded, in bounded memory, and counted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptune.cli.main import run as cli
from perceptune.data.media import shrinking, source
from perceptune.data.media.source import MediaError, image_size, open_image
from pngs import deep_png, png, png_header

WIDE, HIGH = 601, 400
MODES = [
    *(("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "1")), ("JPEG", "RGB"), ("TIFF", "F"), ("GIF", "P"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    shrinking._shrunk.clear()
    yield
    shrinking._shrunk.clear()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit at which small images are large."""
    monkeypatch.setattr(source, "MAX_PIXELS", 70_000)
    return 70_000


def encoded(mode: str, kind: str, **more: Any) -> bytes:
    image = Image.radial_gradient("L").resize((WIDE, HIGH)).convert("RGB")
    image.paste("red", (0, 0, WIDE // 4, HIGH // 4))
    file = BytesIO()
    image.convert(mode).save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_a_large_image_is_scaled_down(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(mode, kind)
    whole = open_image(data)
    assert whole.size == (WIDE, HIGH)
    assert not shrinking._shrunk
    monkeypatch.setattr(source, "MAX_PIXELS", 70_000)
    monkeypatch.setattr(shrinking, "_BAND", 20 * WIDE)
    small = open_image(data)
    assert (small.mode, small.size) == ("RGB", (-(-WIDE // 2), HIGH // 2))
    assert image_size(data) == (HIGH, WIDE)
    means = [np.asarray(one.resize((20, 20), Image.Resampling.BOX), int) for one in (small, whole)]
    assert np.abs(means[0] - means[1]).mean() < 2


@pytest.mark.usefixtures("limit")
def test_colours_by_number_are_averaged_as_the_whole_image_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "_BAND", 20 * WIDE)
    data = encoded("P", "PNG", transparency=3)
    small = open_image(data)
    monkeypatch.undo()
    assert small.tobytes() == open_image(data).reduce(2).tobytes()


@pytest.mark.usefixtures("limit")
def test_it_is_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, mode in (("JPEG", "RGB"), ("PNG", "P"), ("TIFF", "RGB")):
        image = open_image(encoded(mode, kind, exif=turned))
        assert image.size == (HIGH // 2, -(-WIDE // 2))
        red = image.getpixel((HIGH // 2 - 5, 5))
        assert isinstance(red, tuple)
        assert red[0] > 200 > 60 > red[1]


@pytest.mark.usefixtures("limit")
def test_sensors_values_are_scaled_by_all_pixels() -> None:
    values = np.linspace(0, 4000, WIDE * HIGH).reshape(HIGH, WIDE).astype(np.uint16)
    small = np.asarray(open_image(deep_png(values, 0)))
    assert small.shape == (HIGH // 2, -(-WIDE // 2), 3)
    assert small.max() >= 4000 >> 4


@pytest.mark.usefixtures("limit")
def test_each_image_is_counted_once_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        file.write_bytes(encoded("L", "PNG"))
    for _ in range(2):
        open_image(files[0])
    shrinking.print_shrunk()
    assert capsys.readouterr().err == "1 image above 64 megapixels was scaled down while decoding\n"
    for file in files:
        open_image(file)
    shrinking.print_shrunk()
    shrinking.print_shrunk()
    assert capsys.readouterr().err == "3 images above 64 megapixels were scaled down while decoding\n"


def rows_of(width: int, height: int) -> bytes:
    """A grey PNG of zeros, made row by row."""
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    return png(png_header(width, height, 0), (b"IDAT", data), (b"IEND", b""))


def peak(work: Any) -> int:
    """Return how far the memory of this process rises during a call, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux's /proc")
def test_memory_stays_far_below_that_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG is decoded at full size, but in its own mode: 108 MB instead of 432 in RGB. A JPEG is not."""
    grey = rows_of(12_000, 9_000)
    assert peak(lambda: open_image(grey)) < 108e6 + 4 * 27e6 + 60e6
    file = BytesIO()
    Image.new("L", (6_000, 4_500)).save(file, "JPEG")
    monkeypatch.setattr(source, "MAX_PIXELS", 2_000_000)
    assert peak(lambda: open_image(file.getvalue())) < 27e6


def test_what_takes_too_much_memory_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_PIXELS", 70_000)
    monkeypatch.setattr(source, "MAX_DECODED_BYTES", WIDE * HIGH + 1000)
    for kind, mode in (("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK")):
        open_image(encoded(mode, kind), "it")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    for kind, mode in (("PNG", "RGB"), ("TIFF", "F"), ("WEBP", "RGB"), ("JPEG", "RGB")):
        data = encoded(mode, kind, **({"progressive": True} if kind == "JPEG" else {}))
        for read in (open_image, image_size):
            with pytest.raises(MediaError, match=rf"^it: {WIDE} x {HIGH} pixels take .* when decoded"):
                read(data, "it")


def test_a_command_prints_the_number_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.png").write_bytes(encoded("L", "PNG"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "large.png", "prompt": "What?", "targets": "a"}\n')
    monkeypatch.setattr(source, "MAX_PIXELS", 120_000)
    assert cli(["data", "check", str(rows), "--decode"]) == 0
    recognised, said = capsys.readouterr().err.splitlines()
    assert recognised.startswith(f"{rows}: JSON lines")
    assert said == "1 image above 64 megapixels was scaled down while decoding"
