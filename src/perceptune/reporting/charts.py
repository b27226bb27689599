"""Drawings as SVG. Colours are classes, so that the page's style makes them fit light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from perceptune.pictures import Point, nice_ticks, text_width, tick_label
from perceptune.reporting.blocks import Chart
from perceptune.scatter import Mark, count_label, decades, label_boxes

COLOURS = 8  # classes s0 to s7; more series begin anew, with dashes
_WIDTH = 860
_LEFT, _RIGHT = 80, 816
_MAX_POINTS = 400  # of a curve: more are not seen


@dataclass(frozen=True)
class Series:
    """Points over the samples seen, in their order."""

    label: str
    points: Sequence[Point]
    faint: bool = False


@dataclass(frozen=True)
class Bar:
    """One value with its interval, and that of its control."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    blind: float | None = None


def curves(many: Sequence[Series], what: str) -> Chart:
    """Lines over the samples seen."""
    lead = [one for one in many if not one.faint] or many
    top, bottom = 40 + 22 * len(lead), 330 + 22 * len(lead)
    xs = nice_ticks(0, max(1.0, *(x for one in many for x, _ in one.points)), 8)
    # The axis follows the leading curves: one outlier among thousands of steps would flatten them.
    ys = nice_ticks(
        min(0.0, *(y for one in lead for _, y in one.points)), max(y for one in lead for _, y in one.points), 6
    )

    def at(point: Point) -> Point:
        share = (min(max(point[1], ys[0]), ys[-1]) - ys[0]) / (ys[-1] - ys[0])
        return _LEFT + point[0] / xs[-1] * (_RIGHT - _LEFT), bottom - share * (bottom - top)

    parts = _level_axis(ys, top, bottom, what)
    for tick in xs:
        x, _ = at((tick, ys[0]))
        parts += [
            _line([(x, bottom), (x, bottom + 5)], "axis"),
            _text((x, bottom + 20), tick_label(tick, xs), "faint", "middle"),
        ]
    parts.append(_text(((_LEFT + _RIGHT) / 2, bottom + 42), "samples seen", "", "middle"))
    for one in sorted(many, key=lambda one: not one.faint):
        number = lead.index(one) if one in lead else 0
        placed = [at(point) for point in _thinned(one.points)]
        parts.append(_line(placed, f"curve {_class(number)}{' raw' if one.faint else ''}"))
        parts += [_dot(point, 3.5, _class(number)) for point in placed if len(placed) < 30 and not one.faint]
    for number, one in enumerate(lead):
        y = 24 + 22 * number
        parts += [
            _line([(_LEFT, y), (_LEFT + 26, y)], f"curve {_class(number)}"),
            _text((_LEFT + 36, y + 5), one.label),
        ]
    told = "; ".join(f"{one.label}: from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in lead)
    last = max(x for one in many for x, _ in one.points)
    return _chart(parts, bottom + 54, f"{what} over {last:,.0f} samples seen. {told}")


def trade_off(marks: Sequence[Mark], metric: str) -> Chart:
    """Values over trained parameters, which stand on a logarithmic axis."""
    top, bottom = 60, 446  # those of `scatter.label_boxes`
    low, high = decades([mark.trained for mark in marks])
    ends = [end for mark in marks for end in (mark.value, *(mark.interval or ()))]
    ys = nice_ticks(min(ends), max(ends), 6)

    def at(trained: float, value: float) -> Point:
        share = (value - ys[0]) / (ys[-1] - ys[0])
        return _LEFT + (math.log10(trained) - low) / (high - low) * (_RIGHT - _LEFT), bottom - share * (bottom - top)

    parts = _level_axis(ys, top, bottom, metric)
    for power in range(low, high + 1):
        x, _ = at(10.0**power, ys[0])
        parts += [
            _line([(x, bottom), (x, bottom + 5)], "axis"),
            _text((x, bottom + 20), count_label(10**power), "faint", "middle"),
        ]
    parts.append(_text(((_LEFT + _RIGHT) / 2, bottom + 44), "trained parameters", "", "middle"))
    centres = [at(mark.trained, mark.value) for mark in marks]
    for mark in marks:
        if mark.interval is not None:
            parts.append(_line([at(mark.trained, end) for end in mark.interval], "span"))
    parts += [_dot(centre, 5, "s0") for centre in centres]
    labels = [_cut(mark.label, 300) for mark in marks]
    for (x, y, _, _), label in zip(label_boxes(centres, labels), labels, strict=True):
        parts.append(_text((x, y + 13), label))
    told = "; ".join(f"{mark.label}: {mark.value:.3f} with {mark.trained:,}" for mark in marks)
    return _chart(parts, 500, f"{metric} against trained parameters. {told}")


def bars(rows: Sequence[Bar], metric: str) -> Chart:
    """Horizontal bars with intervals; a mark stands where the control is."""
    ends = [
        end for row in rows for end in (row.value, *(row.interval or ()), *([] if row.blind is None else [row.blind]))
    ]
    xs = nice_ticks(min(0.0, *ends), max(*ends, 1e-9), 6)
    left = min(330.0, 40 + max(text_width(row.label, 14) for row in rows))
    bottom = 30 + 34 * len(rows)

    def at(value: float) -> float:
        return left + (value - xs[0]) / (xs[-1] - xs[0]) * (_RIGHT - left)

    parts = []
    for tick in xs:
        parts.append(_line([(at(tick), 24), (at(tick), bottom)], "rule"))
        parts.append(_text((at(tick), bottom + 18), tick_label(tick, xs), "faint", "middle"))
    for number, row in enumerate(rows):
        y = 30 + 34 * number
        zero, end = sorted((at(max(0.0, xs[0])), at(row.value)))
        parts.append(_text((left - 10, y + 18), _cut(row.label, left - 20), "", "end"))
        parts.append(
            f'<rect x="{zero:.1f}" y="{y + 4}" width="{max(end - zero, 0.5):.1f}" height="18" class="{_class(0)}"/>'
        )
        if row.interval is not None:
            a, b = (at(end) for end in row.interval)
            parts += [
                _line([(a, y + 13), (b, y + 13)], "whisker"),
                *(_line([(x, y + 8), (x, y + 18)], "whisker") for x in (a, b)),
            ]
        if row.blind is not None:
            parts.append(_line([(at(row.blind), y), (at(row.blind), y + 26)], "blind"))
    marked = any(row.blind is not None for row in rows)
    note = f"{metric}, with 95 % intervals{'; the upright mark: with the media shuffled' if marked else ''}"
    parts.append(_text(((left + _RIGHT) / 2, bottom + 42), note, "", "middle"))
    told = "; ".join(
        f"{row.label}: {row.value:.3f}"
        + ("" if row.interval is None else f" ({row.interval[0]:.3f} to {row.interval[1]:.3f})")
        for row in rows
    )
    return _chart(parts, bottom + 54, f"{note}. {told}")


def _level_axis(ticks: Sequence[float], top: float, bottom: float, label: str) -> list[str]:
    parts = [_text((_LEFT - 50, top - 14), label.replace("_", " "))]
    for value in ticks:
        y = bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)
        parts.append(_line([(_LEFT, y), (_RIGHT, y)], "axis" if value == ticks[0] else "rule"))
        parts.append(_text((_LEFT - 9, y + 4), tick_label(value, ticks), "faint", "end"))
    return parts


def _chart(parts: Sequence[str], height: float, alt: str) -> Chart:
    """The drawing is described beside it, so that its parts need no words of their own."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img"'
    return Chart(f'{head} aria-label="{escape(alt)}">{"".join(parts)}</svg>', alt)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    step = -(-len(points) // _MAX_POINTS)
    return [*points[::step], *([points[-1]] if (len(points) - 1) % step else [])]


def _line(points: Sequence[Point], name: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" class="{name}"/>'


def _dot(at: Point, radius: float, name: str) -> str:
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}" class="{name}"/>'


def _text(at: Point, text: str, name: str = "", anchor: str = "start") -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" class="{name}" text-anchor="{anchor}">{escape(text)}</text>'


def _class(number: int) -> str:
    return f"s{number % COLOURS}{' dashed' if number >= COLOURS else ''}"


def _cut(text: str, width: float) -> str:
    """As much of a label as fits."""
    while text_width(text, 14) > width:
        text = f"{text[:-2]}…"
    return text
