"""Pictures of a run, drawn with Pillow alone: answers under their images, and the course of the training.

Everything is drawn twice as large and scaled down, because Pillow draws lines without antialiasing.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from perceptune.errors import UserError

_SCALE = 2
_LINE = 20  # height of a line of text in a grid
INK, FAINT, RULE, _PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
_RIGHT, _WRONG = "#1a7f4b", "#c4342d"
_LOSS, _LOSS_RAW, _SCORE = "#0b62b0", "#bcd6ee", "#b35000"
Point = tuple[float, float]
CellText = tuple[list[str], list[str], list[str]]


@dataclass(frozen=True)
class GridCell:
    """One answered question. `correct` is the task's verdict; without it the answer must equal the truth."""

    image: Image.Image
    question: str
    answer: str
    truth: str
    correct: bool | None = None

    @property
    def right(self) -> bool:
        if self.correct is not None:
            return self.correct
        return self.answer.strip().casefold() == self.truth.strip().casefold()


def answer_grid(rows: Sequence[GridCell], path: Path | str, columns: int = 4, title: str = "") -> None:
    """Writes a PNG: per cell image, question, answer with a tick or a cross, and the truth if it is wrong."""
    if not rows or columns < 1:
        raise ValueError("a grid has at least one cell and one column")
    margin, gap, side, columns = 24, 20, 200, min(columns, len(rows))
    width = 2 * margin + columns * side + (columns - 1) * gap
    heading = wrap(title, 20, width - 2 * margin, most=3)
    texts = [_cell_text(cell, side) for cell in rows]
    heights = [
        side + 10 + _LINE * max(sum(map(len, text)) for text in texts[start : start + columns])
        for start in range(0, len(rows), columns)
    ]
    top = margin + 28 * len(heading) + (8 if heading else 0)
    canvas = Canvas(width, top + sum(heights) + gap * (len(heights) - 1) + margin)
    for number, line in enumerate(heading):
        canvas.text((margin, margin + 28 * number), line, 20)
    for index, (cell, text) in enumerate(zip(rows, texts, strict=True)):
        row, column = divmod(index, columns)
        at = (margin + column * (side + gap), top + sum(heights[:row]) + gap * row)
        _draw_cell(canvas, cell, text, at, side)
    canvas.save(path)


def training_curve(log: Sequence[Mapping[str, Any]], path: Path | str, metric: str = "accuracy") -> None:
    """Writes a PNG: the loss of the `step` rows, and `metric` of the `eval` rows, over the samples seen."""
    losses, scores = series(log, "step", "loss"), series(log, "eval", metric)
    if not losses:
        raise UserError("the log holds no training step with a finite loss")
    means = smooth(losses)
    plot = _Plot(nice_ticks(0, max(8, *(x for x, _ in [*losses, *scores])), 8))
    # The axis follows the smoothed curve: one outlier among thousands of steps would flatten it.
    ticks = nice_ticks(min(0.0, *(y for _, y in means)), max(y for _, y in means), 6)
    plot.axis("loss", ticks, _LOSS, -1)
    if means != losses:
        plot.curve("loss of a step", losses, ticks, _LOSS_RAW)
    plot.curve("training loss" if means == losses else "its running mean", means, ticks, _LOSS)
    if scores:
        ticks = nice_ticks(min(0.0, *(y for _, y in scores)), max(1.0, *(y for _, y in scores)), 5)
        plot.axis(metric.replace("_", " "), ticks, _SCORE, 1)
        plot.curve(f"evaluation {metric.replace('_', ' ')}", scores, ticks, _SCORE, dots=True)
    plot.canvas.save(path)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten around `low` and `high`, at most `most` steps."""
    high = high if high > low else low + (abs(low) or 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [number * step for number in range(first, last + 1)]


class Canvas:
    """A white picture; coordinates are its final pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, at: Point, text: str, size: int, fill: str = INK, anchor: str = "la") -> None:
        self.draw.text((at[0] * _SCALE, at[1] * _SCALE), _plain(text), fill, _font(size), anchor)

    def line(self, points: Sequence[Point], fill: str, width: int) -> None:
        self.draw.line([(x * _SCALE, y * _SCALE) for x, y in points], fill, width * _SCALE, joint="curve")

    def dot(self, at: Point, radius: float, fill: str) -> None:
        self.draw.circle((at[0] * _SCALE, at[1] * _SCALE), radius * _SCALE, fill)

    def paste(self, image: Image.Image, at: Point, side: int) -> None:
        """The whole image, upright, in the middle of a square, on white where it is transparent."""
        upright = ImageOps.exif_transpose(image).convert("RGBA")
        fitted = ImageOps.contain(upright, (side * _SCALE, side * _SCALE))
        x, y = (int(at[axis]) * _SCALE + (side * _SCALE - fitted.size[axis]) // 2 for axis in (0, 1))
        self.image.paste(fitted, (x, y), fitted)
        self.draw.rectangle((x, y, x + fitted.width - 1, y + fitted.height - 1), outline=RULE, width=_SCALE)

    def save(self, path: Path | str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.image.resize(self.size, Image.Resampling.BOX).save(path, "PNG", optimize=True)


class _Plot:
    """Curves over one horizontal axis, which starts at zero, with a legend above."""

    left, top, right, bottom = 80, 70, 786, 378

    def __init__(self, x_ticks: Sequence[float]) -> None:
        self.canvas, self.x_ticks, self.legend_x = Canvas(860, 440), x_ticks, float(self.left)
        for value in x_ticks:
            x = self.x(value)
            self.canvas.line([(x, self.bottom), (x, self.bottom + 5)], FAINT, 1)
            self.canvas.text((x, self.bottom + 9), tick_label(value, x_ticks), 13, FAINT, "ma")
        self.canvas.text(((self.left + self.right) / 2, self.bottom + 32), "samples seen", 14, anchor="ma")

    def x(self, value: float) -> float:
        return self.left + value / self.x_ticks[-1] * (self.right - self.left)

    def y(self, value: float, ticks: Sequence[float]) -> float:
        share = (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        return self.bottom - share * (self.bottom - self.top)

    def axis(self, label: str, ticks: Sequence[float], fill: str, side: int) -> None:
        """The left axis (`side` -1) has rules across the plot, the right one (1) only its own marks."""
        x = self.right if side > 0 else self.left
        for value in ticks:
            y = self.y(value, ticks)
            if side < 0:
                self.canvas.line([(self.left, y), (self.right, y)], FAINT if value == ticks[0] else RULE, 1)
            self.canvas.line([(x, y), (x + 5 * side, y)], fill, 1)
            self.canvas.text((x + 9 * side, y), tick_label(value, ticks), 13, fill, "lm" if side > 0 else "rm")
        self.canvas.text((x + 50 * side, self.top - 14), label, 14, fill, "rb" if side > 0 else "lb")

    def curve(self, label: str, points: Sequence[Point], ticks: Sequence[float], fill: str, dots: bool = False) -> None:
        placed = [(self.x(x), self.y(y, ticks)) for x, y in points]
        self.canvas.line(placed, fill, 1 if fill == _LOSS_RAW else 2)
        if dots or len(placed) == 1:  # one point makes no line
            for centre in [*placed, (self.legend_x + 12, 24)]:
                self.canvas.dot(centre, 4, fill)
        self.canvas.line([(self.legend_x, 24), (self.legend_x + 24, 24)], fill, 3)
        self.canvas.text((self.legend_x + 32, 24), label, 14, anchor="lm")
        self.legend_x += 60 + text_width(label, 14)


def _cell_text(cell: GridCell, width: int) -> CellText:
    """Lines of the question, of the answer and, if that is wrong, of the truth."""
    truth = [] if cell.right else wrap(f"right: {cell.truth}", 14, width - 24, most=3)
    return wrap(cell.question, 14, width, 5), wrap(cell.answer or "(no answer)", 16, width - 24, 3), truth


def _draw_cell(canvas: Canvas, cell: GridCell, text: CellText, at: Point, side: int) -> None:
    (x, y), colour = at, _RIGHT if cell.right else _WRONG
    canvas.paste(cell.image, at, side)
    question, answer, truth = text
    styled = [(line, 0, 14, FAINT) for line in question]
    styled += [(line, 24, 16, colour) for line in answer] + [(line, 24, 14, INK) for line in truth]
    for number, (line, indent, size, fill) in enumerate(styled):
        canvas.text((x + indent, y + side + 26 + _LINE * number), line, size, fill, "ls")
    # A tick or a cross: told apart without colours, too.
    x, y = x + 8, y + side + 21 + _LINE * len(question)
    canvas.dot((x, y), 8, colour)
    tick, cross = [[(-4, 0), (-1, 3), (4, -3)]], [[(-3, -3), (3, 3)], [(-3, 3), (3, -3)]]
    for stroke in tick if cell.right else cross:
        canvas.line([(x + dx, y + dy) for dx, dy in stroke], _PAPER, 2)


def wrap(text: str, size: int, width: float, most: int) -> list[str]:
    """At most `most` lines no wider than `width`; an ellipsis stands for what does not fit."""
    lines = [""]
    for word in text.split():
        if text_width(f"{lines[-1]} {word}".strip(), size) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if text_width(lines[-1] + character, size) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > most:
        while text_width(lines[most - 1] + "…", size) > width:
            lines[most - 1] = lines[most - 1][:-1]
        lines[most - 1] += "…"
    return lines[:most] if text.strip() else []


def series(log: Sequence[Mapping[str, Any]], event: str, key: str) -> list[Point]:
    """Finite values over samples seen. A resumed run repeats steps: the later row counts."""
    rows = [row for row in log if row.get("event") == event and isinstance(row.get(key), int | float)]
    return sorted({row["samples"]: row[key] for row in rows if math.isfinite(row[key])}.items())


def smooth(points: Sequence[Point]) -> list[Point]:
    """The mean of each point and its neighbours, a fiftieth of the run on either side."""
    if not (half := (count := len(points)) // 50):
        return list(points)
    total = np.cumsum([0.0, *(y for _, y in points)])
    first, last = (np.arange(count) - half).clip(0), (np.arange(count) + half + 1).clip(max=count)
    means = (total[last] - total[first]) / (last - first)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


def text_width(text: str, size: int) -> float:
    """Of a line, in final pixels."""
    return _font(size).getlength(_plain(text)) / _SCALE


def _plain(text: str) -> str:
    """Letters without their accents, which Pillow's built-in font lacks; other scripts show as boxes."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """As many decimals as the step between ticks needs."""
    text = f"{value:,.{max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))}f}"
    return text if len(text) < 10 else f"{value:.3g}"
