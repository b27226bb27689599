"""A checked data set as a web page: no script, no external resources, every text escaped."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from perceptune.data.conversations import tagged_history, tagged_prompt
from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import open_image
from perceptune.data.records import short
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import Checked
from perceptune.tools.plots.figures import INK
from perceptune.types import Medium
from perceptune.utils.templates import render

_SIDE = 160  # pixels of a thumbnail
_HEARD = 30.0  # seconds of an audio file that are drawn


def page(checked: Checked) -> str:
    """Return the HTML of a report, with thumbnails of the sampled rows."""
    return render(
        Path(__file__).with_name("page.html"), report=checked.report, samples=checked.samples, short=short,
        spread_text=_spread, image=_image, tagged_history=tagged_history,
        tagged_prompt=tagged_prompt,
    )  # fmt: skip


def thumbnail(modality: str, medium: Medium) -> Image.Image:
    """Draw an image, a video's middle frame or an audio file's envelope, 160 x 160 pixels at most."""
    if modality == "audio":
        return _envelope(medium)
    if modality == "video":
        from perceptune.data.media.video import read_frames

        image = next(read_frames(medium, 1))
    else:
        image = open_image(medium)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _spread(spread: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.6g}" for name, value in spread.items())


def _image(modality: str, medium: Medium) -> tuple[str, str]:
    """Return a data URI, or why there is none."""
    try:
        small = thumbnail(modality, medium)
    except UserError as error:
        return "", str(error)
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}", ""


def _envelope(medium: Medium) -> Image.Image:
    """Draw loudness over time."""
    wave = np.abs(read_audio(medium, 8_000, _HEARD))
    peaks = [part.max() for part in np.array_split(wave, _SIDE) if part.size]
    image = Image.new("RGB", (len(peaks), _SIDE // 2), "white")
    draw, middle = ImageDraw.Draw(image), _SIDE // 4
    for x, peak in enumerate(peaks):
        height = round(float(peak) / float(wave.max()) * (middle - 2))
        draw.line([(x, middle - height), (x, middle + height)], fill=INK)
    return image
