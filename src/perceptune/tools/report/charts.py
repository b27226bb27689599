"""SVG drawings. Colours are classes, so that the page's style adapts them to light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from perceptune.tools.plots import layout
from perceptune.tools.report.blocks import Chart
from perceptune.utils.markdown import format_interval

Drawing = tuple[list[str], float]  # elements, height
COLOURS = 8  # classes s0 to s7; further series repeat them, with dashes
_MAX_POINTS = 400  # per curve: more are not visible


class Frame(NamedTuple):
    """A drawing's width, the position of its axes, and the number of steps on the lower one."""

    width: int
    left: int
    right: int
    steps: int


# Each drawing is made for a page and for a phone: scaled down, its letters would be illegible.
FRAMES = (Frame(860, 80, 816, 8), Frame(400, 48, 364, 4))


class Series(NamedTuple):
    """Points over the samples seen, in order."""

    label: str
    points: Sequence[layout.Point]
    faint: bool = False


class Bar(NamedTuple):
    """One value with its interval, and that of its control."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    blind: float | None = None


def curves(many: Sequence[Series], what: str) -> Chart:
    """Draw lines over the samples seen."""
    lead = _leading(many)
    told = "; ".join(f"{one.label}: from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in lead)
    last = max(x for one in many for x, _ in one.points)
    return _chart([_curves(frame, many, what) for frame in FRAMES], f"{what} over {last:,.0f} samples seen. {told}")


def trade_off(marks: Sequence[layout.Mark], metric: str) -> Chart:
    """Draw values over trained parameters, on a logarithmic axis."""
    told = "; ".join(f"{mark.label}: {mark.value:.3f} with {mark.trained:,}" for mark in marks)
    drawings = [_trade_off(frame, marks, metric) for frame in FRAMES]
    return _chart(drawings, f"{metric} against trained parameters. {told}")


def bars(rows: Sequence[Bar], metric: str) -> Chart:
    """Draw horizontal bars with intervals; a mark shows the control."""
    marked = any(row.blind is not None for row in rows)
    note = f"{metric}, with 95 % intervals{'; the upright mark: with the media shuffled' if marked else ''}"
    spans = ["" if row.interval is None else f" ({format_interval(row.interval)})" for row in rows]
    told = "; ".join(f"{row.label}: {row.value:.3f}{span}" for row, span in zip(rows, spans, strict=True))
    return _chart([_bars(frame, rows, note) for frame in FRAMES], f"{note}. {told}")


def _leading(many: Sequence[Series]) -> Sequence[Series]:
    return [one for one in many if not one.faint] or many


def _curves(frame: Frame, many: Sequence[Series], what: str) -> Drawing:
    lead = _leading(many)
    top, bottom = 40 + 22 * len(many), 330 + 22 * len(many)
    xs = layout.nice_ticks(0, max(1.0, *(x for one in many for x, _ in one.points)), frame.steps)
    # The axis is scaled to the leading curves: one outlier among thousands of steps would flatten them.
    values = [y for one in lead for _, y in one.points]
    ys = layout.nice_ticks(min(0.0, *values), max(values), 6)

    def at(point: layout.Point) -> layout.Point:
        share = (min(max(point[1], ys[0]), ys[-1]) - ys[0]) / (ys[-1] - ys[0])
        return frame.left + point[0] / xs[-1] * (frame.right - frame.left), bottom - share * (bottom - top)

    parts = _level_axis(frame, ys, top, bottom, what)
    for tick in xs:
        x, _ = at((tick, ys[0]))
        parts += _tick(x, bottom, layout.tick_label(tick, xs))
    parts += _caption(frame, bottom + 42, "samples seen")
    for one in sorted(many, key=lambda one: not one.faint):
        placed = [at(point) for point in _thinned(one.points)]
        parts.append(_line(placed, _look(one, lead)))
        number = lead.index(one) if one in lead else 0
        parts += [_dot(point, 3.5, _class(number)) for point in placed if len(placed) < 30 and not one.faint]
    for number, one in enumerate(many):
        y, label = 24 + 22 * number, _cut(one.label, frame.width - frame.left - 44)
        parts.append(_line([(frame.left, y), (frame.left + 26, y)], _look(one, lead)))
        parts.append(_text((frame.left + 36, y + 5), label))
    return parts, bottom + 54


def _look(one: Series, lead: Sequence[Series]) -> str:
    return f"curve {_class(lead.index(one) if one in lead else 0)}{' raw' if one.faint else ''}"


def _trade_off(frame: Frame, marks: Sequence[layout.Mark], metric: str) -> Drawing:
    top, bottom = 60, 446
    low, high = layout.decades([mark.trained for mark in marks])
    ends = [end for mark in marks for end in (mark.value, *(mark.interval or ()))]
    ys = layout.nice_ticks(min(ends), max(ends), 6)

    def at(trained: float, value: float) -> layout.Point:
        share = (value - ys[0]) / (ys[-1] - ys[0])
        x = frame.left + (math.log10(trained) - low) / (high - low) * (frame.right - frame.left)
        return x, bottom - share * (bottom - top)

    parts = _level_axis(frame, ys, top, bottom, metric)
    for power in range(low, high + 1):
        parts += _tick(at(10.0**power, ys[0])[0], bottom, layout.count_label(10**power))
    parts += _caption(frame, bottom + 44, "trained parameters")
    centres = [at(mark.trained, mark.value) for mark in marks]
    parts += [_line([at(mark.trained, end) for end in mark.interval], "span") for mark in marks if mark.interval]
    parts += [_dot(centre, 5, "s0") for centre in centres]
    labels = [_cut(mark.label, min(300.0, frame.width * 0.4)) for mark in marks]
    inside = (frame.left, 8.0, frame.width - 8.0, bottom)
    for (x, y, _, _), label in zip(layout.label_boxes(centres, labels, inside), labels, strict=True):
        parts.append(_text((x, y + 13), label))
    return parts, 500


def _bars(frame: Frame, rows: Sequence[Bar], note: str) -> Drawing:
    ends = [end for row in rows for end in (row.value, row.blind, *(row.interval or ())) if end is not None]
    xs = layout.nice_ticks(min(0.0, *ends), max(*ends, 1e-9), min(6, frame.steps))
    left = min(frame.width * 0.38, 40 + max(layout.text_width(row.label, 14) for row in rows))
    bottom = 30 + 34 * len(rows)

    def at(value: float) -> float:
        return left + (value - xs[0]) / (xs[-1] - xs[0]) * (frame.right - left)

    parts = []
    for tick in xs:
        parts.append(_line([(at(tick), 24), (at(tick), bottom)], "rule"))
        parts.append(_text((at(tick), bottom + 18), layout.tick_label(tick, xs), "faint", "middle"))
    for number, row in enumerate(rows):
        y = 30 + 34 * number
        zero, end = sorted((at(max(0.0, xs[0])), at(row.value)))
        parts.append(_text((left - 10, y + 18), _cut(row.label, left - 20), "", "end"))
        width = max(end - zero, 0.5)
        parts.append(f'<rect x="{zero:.1f}" y="{y + 4}" width="{width:.1f}" height="18" class="{_class(0)}"/>')
        if row.interval is not None:
            a, b = (at(end) for end in row.interval)
            whisker = [(a, y + 13), (b, y + 13)], [(a, y + 8), (a, y + 18)], [(b, y + 8), (b, y + 18)]
            parts += [_line(points, "whisker") for points in whisker]
        if row.blind is not None:
            parts.append(_line([(at(row.blind), y), (at(row.blind), y + 26)], "blind"))
    lines = _caption(frame, bottom + 42, note)
    return [*parts, *lines], bottom + 36 + 18 * len(lines)


def _tick(x: float, bottom: float, label: str) -> list[str]:
    return [_line([(x, bottom), (x, bottom + 5)], "axis"), _text((x, bottom + 20), label, "faint", "middle")]


def _caption(frame: Frame, y: float, text: str) -> list[str]:
    """Return a caption under a drawing, wrapped to its width."""
    lines = layout.wrap(text, 15, frame.width - 16, 3)
    return [_text((frame.width / 2, y + 18 * number), line, "", "middle") for number, line in enumerate(lines)]


def _level_axis(frame: Frame, ticks: Sequence[float], top: float, bottom: float, label: str) -> list[str]:
    parts = [_text((max(8, frame.left - 50), top - 14), label.replace("_", " "))]
    for value in ticks:
        y = bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)
        parts.append(_line([(frame.left, y), (frame.right, y)], "axis" if value == ticks[0] else "rule"))
        parts.append(_text((frame.left - 9, y + 4), layout.tick_label(value, ticks), "faint", "end"))
    return parts


def _chart(drawings: Sequence[Drawing], alt: str) -> Chart:
    """Return the chart with its drawings; `alt` describes them, so that their parts need no description."""
    svgs = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {height:.0f}" role="img"'
        f' aria-label="{escape(alt)}">{"".join(parts)}</svg>'
        for frame, (parts, height) in zip(FRAMES, drawings, strict=True)
    ]
    return Chart(svgs[0], svgs[1], alt)


def _thinned(points: Sequence[layout.Point]) -> Sequence[layout.Point]:
    step = -(-len(points) // _MAX_POINTS)
    return [*points[::step], *([points[-1]] if (len(points) - 1) % step else [])]


def _line(points: Sequence[layout.Point], name: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" class="{name}"/>'


def _dot(at: layout.Point, radius: float, name: str) -> str:
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}" class="{name}"/>'


def _text(at: layout.Point, text: str, name: str = "", anchor: str = "start") -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" class="{name}" text-anchor="{anchor}">{escape(text)}</text>'


def _class(number: int) -> str:
    return f"s{number % COLOURS}{' dashed' if number >= COLOURS else ''}"


def _cut(text: str, width: float) -> str:
    """Return as much of a label as fits, in a font that may be wider than the one it is measured with."""
    while layout.text_width(text, 15) > width:
        text = f"{text[:-2]}…"
    return text
