"""Single answers: what they are worth by type of question, and pictures of right and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from perceptune.errors import UserError
from perceptune.records import short
from perceptune.reporting.blocks import Block, Grid, Shot, Table, Words
from perceptune.reporting.gather import Run, number
from perceptune.reporting.shots import shots
from perceptune.statistics import bootstrap_difference, bootstrap_interval

# Where data sets write what kind of question it is, the nearest first.
_TYPES = ("answer_type", "question_type", "type", "category", "structural", "semantic")
_MOST_TYPES = 40


def by_type(run: Run) -> Iterator[Table]:
    """A table for each key of the data that names types of questions: the metric, and its gap to each control."""
    for key in _TYPES:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in run.predictions:
            kind = row["meta"].get(key)
            if isinstance(kind, str) and run.metric in row["scores"]:
                groups.setdefault(kind, []).append(row)
        if groups:
            yield _type_table(run, key, groups)


def _type_table(run: Run, key: str, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    metric = run.metric
    controls = [name for name, rows in run.blind.items() if rows]
    words = {"shuffled": "media shuffled", "no_media": "no media"}
    heading = [key, "samples", metric, "95 %"]
    for name in controls:
        heading += [words.get(name, name), "gap (95 %)"]
    largest = sorted(groups, key=lambda kind: (-len(groups[kind]), kind))
    rows = []
    for kind in largest[:_MOST_TYPES]:
        own = groups[kind]
        values = [float(row["scores"][metric]) for row in own]
        low, high = bootstrap_interval(values, groups=[_media(row) for row in own])
        cells = [kind, f"{len(own):,}", f"{fmean(values):.3f}", f"{low:.3f} to {high:.3f}"]
        for name in controls:
            cells += _against(own, run.blind[name], metric)
        rows.append(cells)
    rest = len(groups) - len(rows)
    more = f"; {rest} rarer ones are left out" if rest else ""
    return Table(f"{run.name}: {metric} by {key}{more}", heading, rows)


def _against(own: Sequence[Mapping[str, Any]], blind: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[str, str]:
    """The same samples under a control, and the paired gap."""
    both = [(row, other) for row in own if (other := blind.get(row["id"])) is not None and metric in other["scores"]]
    if not both:
        return "", ""
    a, b = ([float(row["scores"][metric]) for row in rows] for rows in zip(*both, strict=True))
    low, high = bootstrap_difference(a, b, groups=[_media(row) for row, _ in both])
    return f"{fmean(b):.3f}", f"{fmean(a) - fmean(b):+.3f} ({low:+.3f} to {high:+.3f})"


def _media(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes samples dependent: questions on one picture are right or wrong together."""
    return tuple(sorted(row["media"].items())) or (row["id"],)


def grids(run: Run, count: int, *, media: bool) -> list[Block]:
    """Some right answers and some wrong ones; those of a metric without right and wrong, the best and the worst."""
    scored = [row for row in run.predictions if number(row["scores"].get(run.metric)) is not None]
    if not scored:
        return [Words("There are no scored predictions to show.", "bad")]
    good, bad, names = _sorted_out(scored, run.metric)
    found: list[Block] = []
    for name, rows, right in ((names[0], good, True), (names[1], bad, False)):
        chosen = _spread(rows, count)
        if chosen:
            caption = f"{name}: {len(chosen)} of {len(rows):,}"
            found.append(Grid(caption, [_shot(run, row, right, media=media) for row in chosen]))
        else:
            found.append(Words(f"{name}: none."))
    return found


def _sorted_out(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[Any], list[Any], tuple[str, str]]:
    values = [float(row["scores"][metric]) for row in rows]
    if set(values) <= {0.0, 1.0} or (metric.startswith("accuracy") and max(values) <= 1.0):
        good = [row for row, value in zip(rows, values, strict=True) if value >= 0.5]
        return good, [row for row, value in zip(rows, values, strict=True) if value < 0.5], ("Right", "Wrong")
    order = sorted(range(len(rows)), key=lambda i: (-values[i], i))
    third = -(-len(rows) // 3)
    names = (f"The best third by {metric}", f"The worst third by {metric}")
    return [rows[i] for i in order[:third]], [rows[i] for i in order[third:][-third:]], names


def _spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Evenly over the rows, each medium once as long as there are others."""
    first: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(_media(row), row)
    pool = list(first.values()) if len(first) >= count else list(rows)
    return [pool[i * len(pool) // count] for i in range(count)] if len(pool) > count else pool


def _shot(run: Run, row: Mapping[str, Any], right: bool, *, media: bool) -> Shot:
    pictures: list[tuple[str, str]] = []
    lacking = [] if row["media"] or not media else ["its medium lies inside the data set, not in a file of its own"]
    for modality, name in row["media"].items() if media else ():
        try:
            pictures += shots(modality, Path(name), row["id"])
        except (UserError, OSError) as error:
            lacking.append(str(error))
    blind = run.blind.get("shuffled", {}).get(row["id"])
    return Shot(
        pictures,
        short("; ".join(lacking), 200),
        short(row["prompt"], 300),
        short(row["answer"], 300),
        short(" / ".join(dict.fromkeys(row["targets"])), 300),
        right,
        None if blind is None else short(blind["answer"], 200),
    )
