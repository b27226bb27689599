"""Images of runs as PNG, drawn by matplotlib: answers under their images, training curves, comparisons.

matplotlib is an extra (`plots`), loaded when something is drawn. A unit is a pixel, from the top left corner.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageOps

from perceptune.errors import UserError
from perceptune.tools.plots.layout import Mark, Point, label_boxes, series, smooth, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDED = "charts and grids of images need matplotlib: run `pip install 'perceptune[plots]'`"
INK, FAINT, RULE = "#1f2328", "#59636e", "#d8dee4"
RIGHT, WRONG = "#1a7f4b", "#c4342d"
LOSS, LOSS_OF_A_STEP, SCORE, INTERVAL = "#0b62b0", "#bcd6ee", "#b35000", "#8fb8de"
_LINE = 20  # height of a line of text in a grid


def has_matplotlib() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise `UserError` if the extra `plots` is missing."""
    if not has_matplotlib():
        raise UserError(NEEDED)


class GridCell(NamedTuple):
    """One answered question. `correct` is the task's verdict; without it the answer must equal the reference."""

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

    def lines(self, width: int) -> list[tuple[str, int, str]]:
        """Return text, size and colour of each line: the question, the answer and, if that is wrong, the truth."""
        # A tick or a cross: distinguishable without colours, too.
        mark, colour = ("✓", RIGHT) if self.right else ("✗", WRONG)
        truth = "" if self.right else f"right: {self.truth}"
        styled = ((self.question, 13, FAINT, 5), (f"{mark} {self.answer or '(no answer)'}", 15, colour, 3),
                  (truth, 13, INK, 3))  # fmt: skip
        return [
            (line, size, fill)
            for text, size, fill, most in styled
            for line in wrap(text, size, width, most, text_width)
        ]


class Page:
    """A white image on which text and images are placed by pixel coordinates."""

    def __init__(self, width: float, height: float) -> None:
        self.figure, self.height = new_figure(width, height), height

    def text(self, x: float, y: float, text: str, size: int, fill: str = INK, align: str = "left") -> None:
        """Draw a line of text; `y` is its baseline."""
        self.figure.text(
            x, self.height - y, text, fontsize=size, color=fill, ha=align, transform=None, parse_math=False
        )  # fmt: skip

    def image(self, image: Image.Image, x: float, y: float, side: int) -> Axes:
        """Draw the whole image, upright and centred in a square, on white if it is transparent."""
        upright = ImageOps.exif_transpose(image).convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        width, height = ImageOps.contain(whole, (side, side)).size
        across, down = self.figure.bbox.size
        left, bottom = x + (side - width) / 2, self.height - y - (side + height) / 2
        box = (left / across, bottom / down, width / across, height / down)
        axes = self.figure.add_axes(box, xticks=[], yticks=[])
        axes.imshow(whole, aspect="auto")
        axes.spines[:].set_color(RULE)
        return axes


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of this size in pixels, whose text sizes are pixels, too."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure((width / 72, height / 72), dpi=72)


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # other scripts show as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format="png", pil_kwargs={"optimize": True})


@cache
def text_width(text: str, size: int) -> float:
    """Measure a line, in pixels, in the font that matplotlib draws with."""
    require_matplotlib()
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def answer_grid(rows: Sequence[GridCell], path: Path | str, columns: int = 4, title: str = "") -> None:
    """Write a PNG: per cell image, question, answer with a tick or a cross, and the truth if it is wrong."""
    if not rows or columns < 1:
        raise ValueError("a grid has at least one cell and one column")
    margin, gap, side, columns = 24, 20, 200, min(columns, len(rows))
    width = 2 * margin + columns * side + (columns - 1) * gap
    heading = wrap(title, 18, width - 2 * margin, 3, text_width)
    texts = [cell.lines(side) for cell in rows]
    groups = [range(start, min(start + columns, len(rows))) for start in range(0, len(rows), columns)]
    heights = [side + 10 + _LINE * max(len(texts[index]) for index in group) for group in groups]
    top = margin + 28 * len(heading) + (8 if heading else 0)
    page = Page(width, top + sum(heights) + gap * (len(heights) - 1) + margin)
    for number, line in enumerate(heading):
        page.text(margin, margin + 18 + 28 * number, line, 18)
    for group, height in zip(groups, heights, strict=True):
        for column, index in enumerate(group):
            left = margin + column * (side + gap)
            page.image(rows[index].image, left, top, side)
            for number, (line, size, fill) in enumerate(texts[index]):
                page.text(left, top + side + 26 + _LINE * number, line, size, fill)
        top += height + gap
    save(page.figure, path)


def training_curve(log: Sequence[Mapping[str, Any]], path: Path | str, metric: str = "accuracy") -> None:
    """Write a PNG: the loss of the `step` rows, and `metric` of the `eval` rows, over the samples seen."""
    save(curve_of(log, metric), path)


def curve_of(log: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Draw the figure of `training_curve`."""
    losses, scores = series(log, "step", "loss"), series(log, "eval", metric)
    if not losses:
        raise UserError("the log holds no training step with a finite loss")
    means, name = smooth(losses), metric.replace("_", " ")
    figure, axes = _axes(860, 440, "samples seen")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if means != losses:
        axes.plot(*_columns(losses), color=LOSS_OF_A_STEP, linewidth=1, label="loss of a step")
    _line(axes, means, LOSS, "training loss" if means == losses else "its running mean", dots=len(means) == 1)
    axes.set_ylabel("loss", color=LOSS, fontsize=13)
    # The axis is scaled to the smoothed curve: one outlier among thousands of steps would flatten it.
    _limit(axes, min(0.0, *(y for _, y in means)), max(y for _, y in means))
    if scores:
        right = axes.twinx()
        right.spines[:].set_visible(False)
        _line(right, scores, SCORE, f"evaluation {name}", dots=True)
        right.set_ylabel(name, color=SCORE, fontsize=13)
        _limit(right, min(0.0, *(y for _, y in scores)), max(1.0, *(y for _, y in scores)))
    axes.set_xlim(0, max(8, *(x for x, _ in [*losses, *scores])))
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=13)
    return figure


def trade_off(marks: Sequence[Mark], path: Path | str, metric: str) -> None:
    """Write a PNG: the metric of each method over its trained parameters, on a logarithmic axis."""
    if not marks or any(mark.trained < 1 for mark in marks):
        raise ValueError("a chart needs methods, each with something trained")
    figure, axes = _axes(860, 520, "trained parameters")
    from matplotlib.ticker import EngFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 10k
    axes.set_ylabel(metric.replace("_", " "), fontsize=13)
    for mark in marks:
        if mark.interval is not None:
            axes.plot([mark.trained] * 2, mark.interval, color=INTERVAL, linewidth=2)
        axes.plot(mark.trained, mark.value, "o", color=LOSS, markersize=9)
    axes.margins(0.06)
    figure.draw_without_rendering()
    centres = [(x, 520 - y) for x, y in axes.transData.transform([(mark.trained, mark.value) for mark in marks])]
    inside = (axes.bbox.x0, 8, 852, 520 - axes.bbox.y0)
    labels = [mark.label for mark in marks]
    for (x, y, _, _), label in zip(label_boxes(centres, labels, inside, text_width), labels, strict=True):
        figure.text(x, 520 - y - 14, label, fontsize=14, color=INK, transform=None, parse_math=False)
    save(figure, path)


def _axes(width: int, height: int, label: str) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    figure.set_layout_engine("constrained", w_pad=16 / 72, h_pad=16 / 72)
    axes = figure.add_subplot()
    axes.set_xlabel(label, fontsize=13)
    axes.tick_params(labelsize=12)
    axes.grid(axis="y", color=RULE)
    axes.spines[["top", "left", "right"]].set_visible(False)
    return figure, axes


def _line(axes: Axes, points: Sequence[Point], colour: str, label: str, *, dots: bool) -> None:
    axes.plot(*_columns(points), "o-" if dots else "-", color=colour, linewidth=2, markersize=8, label=label)
    axes.tick_params("y", colors=colour, labelsize=12)


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _limit(axes: Axes, low: float, high: float) -> None:
    high = high if high > low else low + (abs(low) or 1.0)
    axes.set_ylim(low, high + 0.03 * (high - low))
