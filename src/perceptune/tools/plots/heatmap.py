"""Heat maps over an image: an encoder's grid of patches mapped back to the image's own pixels, as a panel."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptune.data.media.source import ImageTransform
from perceptune.tools.plots.figures import FAINT, Page, save, text_width
from perceptune.tools.plots.layout import Box, wrap

Map = NDArray[np.float32]

_SIDE, _GAP, _MARGIN, _LINE = 168, 12, 24, 20
_OPAQUE = 0.6  # opacity of the colours at the greatest value


class PanelRow(NamedTuple):
    """A row of a panel: the prompt, and a map (gh, gw) for each column."""

    label: str
    maps: Sequence[Map]


def seen_part(transform: ImageTransform, width: int, height: int) -> Box:
    """Return the part of an image that an encoder receives, in the image's pixels.

    The whole image if it is resized without its aspect ratio, its middle if cropped; larger than the image if padded.
    """
    if isinstance(transform.resize, int):
        short = min(width, height)
        scaled = (transform.resize * width // short, transform.resize * height // short)
    else:
        scaled = (transform.resize[1], transform.resize[0])
    if transform.crop is None:
        return (0.0, 0.0, float(width), float(height))
    rows, columns = transform.crop
    left, top = (scaled[0] - columns) // 2, (scaled[1] - rows) // 2
    across, down = width / scaled[0], height / scaled[1]
    return (left * across, top * down, (left + columns) * across, (top + rows) * down)


def on_image(grid: Map, box: Box, width: int, height: int) -> tuple[Map, NDArray[np.bool_]]:
    """Return the map (height, width) of a grid that covers `box`, from 0 to 1 inside the box, and the pixels inside."""
    left, top = round(box[0]), round(box[1])
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    large = Image.fromarray(grid.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    found = np.asarray(large)[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    # Cubic interpolation overshoots the values.
    found = found.clip(grid.min(), grid.max())
    low, high = float(found.min()), float(found.max())
    values, seen = np.zeros((height, width), np.float32), np.zeros((height, width), np.bool_)
    values[rows, columns] = (found - low) / (high - low) if high > low else 0.0
    seen[rows, columns] = True
    return values, seen


def save_panel(
    image: Image.Image, box: Box, columns: Sequence[str], rows: Sequence[PanelRow], path: Path | str
) -> None:
    """Write a PNG: the image, then its maps, a line for each row; `box` as returned by `seen_part`."""
    width = 2 * _MARGIN + (len(columns) + 1) * (_SIDE + _GAP) - _GAP
    lines = [wrap(row.label, 14, width - 2 * _MARGIN, 3, text_width) or [""] for row in rows]
    heights = [_LINE * len(text) + 6 + _SIDE + 2 * _GAP for text in lines]
    page = Page(width, 2 * _MARGIN + _LINE + sum(heights))
    for number, name in enumerate(["image", *columns]):
        page.text(_MARGIN + number * (_SIDE + _GAP) + _SIDE / 2, _MARGIN + 12, name, 13, FAINT, "center")
    top = _MARGIN + _LINE
    for row, text, height in zip(rows, lines, heights, strict=True):
        for number, line in enumerate(text):
            page.text(_MARGIN, top + 14 + _LINE * number, line, 14)
        upper = top + _LINE * len(text) + 6
        page.image(image, _MARGIN, upper, _SIDE)
        for number, one in enumerate(row.maps, 1):
            values, seen = on_image(one, box, *image.size)
            axes = page.image(greyed(image, seen), _MARGIN + number * (_SIDE + _GAP), upper, _SIDE)
            # The least value has a fourth of the greatest one's opacity; pixels outside the box have none.
            alpha = _OPAQUE * seen * (0.25 + 0.75 * values)
            axes.imshow(values, cmap="turbo", vmin=0, vmax=1, alpha=alpha, aspect="auto")
        top += height
    save(page.figure, path)


def greyed(image: Image.Image, seen: NDArray[np.bool_]) -> Image.Image:
    """Return the image with grey where the encoder does not receive it."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    grey = 0.5 * pixels.mean(-1, keepdims=True) + 96.0
    return Image.fromarray(np.where(seen[..., None], pixels, grey).round().astype(np.uint8))
