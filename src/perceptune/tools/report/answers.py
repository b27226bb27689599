"""Sample answers: right ones, wrong ones by kind, the same questions answered by several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceptune.data.records import short
from perceptune.errors import UserError
from perceptune.evaluation.clusters import cluster_of_row
from perceptune.tools.report.blocks import Block, GivenAnswer, Grid, Shot, Words
from perceptune.tools.report.gather import ReportedRun, number
from perceptune.tools.report.mistakes import by_kind, kinds_table
from perceptune.tools.report.shots import shots

Row = Mapping[str, Any]
_KINDS_SHOWN = 6


def grids(run: ReportedRun, count: int, *, media: bool) -> list[Block]:
    """Return some right answers, and wrong ones by kind; for a graded metric the best and the worst."""
    scored = [row for row in run.predictions if number(row["scores"].get(run.metric)) is not None]
    if not scored:
        return [Words("There are no scored predictions to show.", "bad")]
    if not _is_exact(scored, run.metric):
        order = sorted(scored, key=lambda row: -row["scores"][run.metric])
        third = -(-len(scored) // 3)
        thirds = [("best", order[:third]), ("worst", order[third:][-third:])]
        return [_grid(run, f"The {name} third by {run.metric}", rows, count, media=media) for name, rows in thirds]
    wrong = [row for row in scored if not _is_right(row, run.metric)]
    found = [_grid(run, "Right", [row for row in scored if _is_right(row, run.metric)], count, media=media)]
    if not wrong:
        return [*found, Words("Wrong: none.")]
    kinds = by_kind(wrong, scored)
    found.append(kinds_table(run.name, kinds, run.blind.get("shuffled", {})))
    shown = list(kinds.items())[:_KINDS_SHOWN]
    each = 2 * -(-count // (2 * len(shown)))  # even, for pages of two columns
    return [*found, *(_grid(run, f"Wrong ({kind})", rows, each, media=media) for kind, rows in shown)]


def together(runs: Sequence[ReportedRun], count: int, *, media: bool) -> list[Block]:
    """Return the same samples answered by several runs; if answers are right or wrong, those on which runs disagree."""
    metric = runs[0].metric
    scored = [{row["id"]: row for row in run.predictions if metric in row["scores"]} for run in runs]
    shared = [key for key in scored[0] if all(key in rows for rows in scored)]
    if not shared:
        return []
    exact = all(_is_exact([*rows.values()], metric) for rows in scored)
    split = [key for key in shared if exact and len({_is_right(rows[key], metric) for rows in scored}) > 1]
    chosen = _spread([scored[0][key] for key in split or shared], count)
    answered = [[(run.name, rows[row["id"]]) for run, rows in zip(runs, scored, strict=True)] for row in chosen]
    of = f"{len(shared):,}"
    if split:
        of = f"{len(split):,} that some answer right and some wrong ({of} asked)"
    found = [_shot(each, metric, exact, media=media) for each in answered]
    return [Grid(f"The same questions put to all: {len(chosen)} of {of}", found)]


def _grid(run: ReportedRun, name: str, rows: Sequence[Row], count: int, *, media: bool) -> Block:
    chosen = _spread(rows, count)
    if not chosen:
        return Words(f"{name}: none.")
    blind, exact = run.blind.get("shuffled", {}), _is_exact(run.predictions, run.metric)
    found = [_shot([("", row)], run.metric, exact, media=media, blind=blind.get(row["id"])) for row in chosen]
    return Grid(f"{name}: {len(chosen)} of {len(rows):,}", found)


def _is_exact(rows: Sequence[Row], metric: str) -> bool:
    """Return whether answers are right or wrong: not so for CIDEr and other graded metrics."""
    values = {row["scores"][metric] for row in rows if metric in row["scores"]}
    return values <= {0, 1} or (metric.startswith("accuracy") and max(values) <= 1)


def _is_right(row: Row, metric: str) -> bool:
    return float(row["scores"][metric]) >= 0.5


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Select rows evenly, with distinct media as long as possible."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault(cluster_of_row(row), row)
    pool = list(first.values()) if len(first) >= count else list(rows)
    return [pool[i * len(pool) // count] for i in range(count)] if len(pool) > count else pool


def _shot(
    answered: Sequence[tuple[str, Row]], metric: str, exact: bool, *, media: bool, blind: Row | None = None
) -> Shot:
    """Return one sample with each run's answer to it."""
    row = answered[0][1]
    images: list[tuple[str, str]] = []
    lacking = [] if row["media"] or not media else ["its medium lies inside the data set, not in a file of its own"]
    named = [(modality, name) for modality, given in row["media"].items() for name in _listed(given)]
    for modality, name in named if media else ():
        try:
            images += shots(modality, Path(name), row["id"])
        except (UserError, OSError) as error:
            lacking.append(str(error))
    said = [
        GivenAnswer(by, short(one["answer"], 300), _is_right(one, metric) if exact else None,
                    "" if exact else f"{metric} {one['scores'][metric]:.3f}")
        for by, one in answered
    ]  # fmt: skip
    truth, other = " / ".join(dict.fromkeys(row["targets"])), None if blind is None else short(blind["answer"], 200)
    question, history = (
        short(row["prompt"], 300),
        [f"{one['role']}: {one['content']}" for one in row.get("history", ())],
    )
    return Shot(images, short("; ".join(lacking), 200), question, said, short(truth, 300), other,
                [short(turn, 300) for turn in history])  # fmt: skip


def _listed(given: str | list[str]) -> list[str]:
    return given if isinstance(given, list) else [given]
