"""A picture of several methods: what each is worth against what it trains, as labelled points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceptune.tools.plots.png import FAINT, INK, RULE, Canvas, Point, nice_ticks, text_width, tick_label

_DOT, _SPAN = "#0b62b0", "#8fb8de"
_WIDTH, _HEIGHT = 860, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 60, 816, 446
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Mark:
    """One method: trained parameters, value, and how sure the value is."""

    label: str
    trained: int
    value: float
    interval: tuple[float, float] | None = None


def trade_off(marks: Sequence[Mark], path: Path | str, metric: str) -> None:
    """Writes a PNG: the metric of each method over its trained parameters, which stand on a logarithmic axis."""
    if not marks or any(mark.trained < 1 for mark in marks):
        raise ValueError("a picture needs methods, each with something trained")
    canvas = Canvas(_WIDTH, _HEIGHT)
    low, high = decades([mark.trained for mark in marks])
    ends = [end for mark in marks for end in (mark.value, *(mark.interval or ()))]
    ticks = nice_ticks(min(ends), max(ends), 6)

    def at(trained: float, value: float) -> Point:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return _LEFT + (math.log10(trained) - low) / (high - low) * (_RIGHT - _LEFT), _BOTTOM - share * (_BOTTOM - _TOP)

    _axes(canvas, low, high, ticks, metric)
    for mark in marks:
        if mark.interval is not None:
            canvas.line([at(mark.trained, end) for end in mark.interval], _SPAN, 2)
    centres = [at(mark.trained, mark.value) for mark in marks]
    for centre in centres:
        canvas.dot(centre, 5, _DOT)
    for (x, y, _, _), mark in zip(label_boxes(centres, [mark.label for mark in marks]), marks, strict=True):
        canvas.text((x, y), mark.label, 14)
    canvas.save(path)


def label_boxes(
    centres: Sequence[Point], labels: Sequence[str], within: Box = (_LEFT, 8, _WIDTH - 8, _BOTTOM)
) -> list[Box]:
    """Where each label stands: beside its point, inside the picture, over no other label or point if that can be."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    boxes = []
    for (x, y), label in zip(centres, labels, strict=True):
        width, height = text_width(label, 14), 18.0
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


def _axes(canvas: Canvas, low: int, high: int, ticks: Sequence[float], metric: str) -> None:
    for power in range(low, high + 1):
        x = _LEFT + (power - low) / (high - low) * (_RIGHT - _LEFT)
        canvas.line([(x, _BOTTOM), (x, _BOTTOM + 5)], FAINT, 1)
        canvas.text((x, _BOTTOM + 9), count_label(10**power), 13, FAINT, "ma")
    canvas.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 34), "trained parameters", 14, INK, "ma")
    for value in ticks:
        y = _BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_BOTTOM - _TOP)
        canvas.line([(_LEFT, y), (_RIGHT, y)], FAINT if value == ticks[0] else RULE, 1)
        canvas.text((_LEFT - 9, y), tick_label(value, ticks), 13, FAINT, "rm")
    canvas.text((_LEFT - 50, _TOP - 18), metric.replace("_", " "), 14, INK, "lb")


def decades(counts: Sequence[int]) -> tuple[int, int]:
    """Powers of ten around all counts."""
    low, high = math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts)))
    return low, max(high, low + 1)


def count_label(number: int) -> str:
    """10,000 -> 10k."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number // unit}{name}"
    return str(number)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
