"""Layout of drawings: points of a run, ticks, lines of text, labels that do not overlap."""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageFont

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Measure = Callable[[str, int], float]  # text, size -> width, in pixels


class Mark(NamedTuple):
    """One method: trained parameters, value, and the value's interval."""

    label: str
    trained: int
    value: float
    interval: tuple[float, float] | None = None


def series(log: Sequence[Mapping[str, Any]], event: str, key: str) -> list[Point]:
    """Return finite values over samples seen. A resumed run repeats steps: the later row counts."""
    rows = [row for row in log if row.get("event") == event and isinstance(row.get(key), int | float)]
    return sorted({row["samples"]: row[key] for row in rows if math.isfinite(row[key])}.items())


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return the mean of each point and its neighbours, a fiftieth of the run on either side."""
    if not (half := (count := len(points)) // 50):
        return list(points)
    total = np.cumsum([0.0, *(y for _, y in points)])
    first, last = (np.arange(count) - half).clip(0), (np.arange(count) + half + 1).clip(max=count)
    means = (total[last] - total[first]) / (last - first)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> float:
    """Measure a line, in pixels, in Pillow's own font."""
    return _font(size).getlength(_plain(text))


def _plain(text: str) -> str:
    """Return letters without their accents, which Pillow's built-in font lacks; other scripts show as boxes."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """Format a tick with the decimals that the step between ticks needs."""
    text = f"{value:,.{max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))}f}"
    return text if len(text) < 10 else f"{value:.3g}"


def wrap(text: str, size: int, width: float, most: int, measure: Measure = text_width) -> list[str]:
    """Wrap a text to at most `most` lines no wider than `width`; an ellipsis replaces text that does not fit."""
    lines = [""]
    for word in text.split():
        if measure(f"{lines[-1]} {word}".strip(), size) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if measure(lines[-1] + character, size) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > most:
        while measure(lines[most - 1] + "…", size) > width:
            lines[most - 1] = lines[most - 1][:-1]
        lines[most - 1] += "…"
    return lines[:most] if text.strip() else []


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten around `low` and `high`, at most `most` steps."""
    high = high if high > low else low + (abs(low) or 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [number * step for number in range(first, last + 1)]


def label_boxes(
    centres: Sequence[Point], labels: Sequence[str], within: Box, measure: Measure = text_width
) -> list[Box]:
    """Place each label beside its point, inside the image, over no other label or point if possible."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    boxes = []
    for (x, y), label in zip(centres, labels, strict=True):
        width, height = measure(label, 14), 18.0
        corners = [
            (x + dx, y + dy)
            for distance in (0, 14, 28, 42)
            for dx, dy in (
                (9, -height / 2 + distance), (9, -height / 2 - distance), (-9 - width, -height / 2 + distance),
                (-9 - width, -height / 2 - distance), (-width / 2, -height - 7 - distance), (-width / 2, 7 + distance),
            )
        ]  # fmt: skip
        places = [(left, top, left + width, top + height) for left, top in corners]
        left, top, right, bottom = within
        inside = [box for box in places if box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom]
        best = min(inside or places, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(best)
        boxes.append(best)
    return boxes


def decades(counts: Sequence[int]) -> tuple[int, int]:
    """Return the powers of ten around all counts."""
    low, high = math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts)))
    return low, max(high, low + 1)


def count_label(number: int) -> str:
    """Format a count: 10,000 -> 10k."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number // unit}{name}"
    return str(number)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
