"""Scores by type of question: of one run with its controls, of several side by side."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from perceptune.data.bootstrap import bootstrap_difference, bootstrap_interval
from perceptune.evaluation.clusters import cluster_of_row
from perceptune.tools.report.blocks import Block, Table, Words
from perceptune.tools.report.gather import ReportedRun, is_comparable
from perceptune.utils.markdown import format_interval

Row = Mapping[str, Any]
# Keys in which data sets store the type of question, the most specific first.
_TYPES = ("answer_type", "question_type", "type", "category", "structural", "semantic")
_MOST_TYPES = 40
_CONTROLS = {"shuffled": "media shuffled", "no_media": "no media", "exchanged": "media exchanged"}


def questions(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    """Yield all tables: several runs in one, then each run's own if there is no common one or it has controls."""
    shared = list(_side_by_side(runs)) if len(runs) > 1 else []
    yield from shared
    for run in runs:
        if not run.predictions:
            yield Words(f"{run.name}: there are no predictions (`perceptune eval` writes them).", "bad")
        elif not (own := [*by_type(run)]):
            yield Words(f"{run.name}: the data name no types of questions.")
        elif not shared or any(run.blind.values()):
            yield from own


def by_type(run: ReportedRun) -> Iterator[Table]:
    """Yield a table for each key of the data with types of questions: the metric, and its gap to each control."""
    for key in _TYPES:
        groups = _groups(run, run.metric, key)
        if groups:
            yield _type_table(run, key, groups)


def _groups(run: ReportedRun, metric: str, key: str) -> dict[str, list[Row]]:
    """Return the scored predictions of each type, the most frequent type first."""
    groups: dict[str, list[Row]] = {}
    for row in run.predictions:
        kind = row["meta"].get(key)
        if isinstance(kind, str) and metric in row["scores"]:
            groups.setdefault(kind, []).append(row)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _type_table(run: ReportedRun, key: str, groups: Mapping[str, Sequence[Row]]) -> Table:
    metric = run.metric
    controls = [name for name, rows in run.blind.items() if rows]
    heading = [_named(key), "samples", metric, "95 %"]
    for name in controls:
        heading += [_CONTROLS.get(name, name), "gap (95 %)"]
    rows = []
    for kind, own in list(groups.items())[:_MOST_TYPES]:
        value, low, high = estimate(own, metric)
        cells = [kind, f"{len(own):,}", f"{value:.3f}", format_interval((low, high))]
        for name in controls:
            cells += _against(own, run.blind[name], metric)
        rows.append(cells)
    rest = len(groups) - len(rows)
    more = f"; {rest} rarer ones are left out" if rest else ""
    return Table(f"{run.name}: {metric} by {_named(key)}{more}", heading, rows)


def _side_by_side(runs: Sequence[ReportedRun]) -> Iterator[Table]:
    """Yield a table per key: the value of each type in each run, if at least two runs have types of that key."""
    runs = [run for run in runs if is_comparable(run, runs[0])]
    for key in _TYPES:
        found = {run.name: groups for run in runs if (groups := _groups(run, runs[0].metric, key))}
        if len(found) < 2:
            continue
        kinds = list(dict.fromkeys(kind for groups in found.values() for kind in groups))[:_MOST_TYPES]
        rows = [[name, *(_told(groups.get(kind, []), runs[0].metric) for kind in kinds)] for name, groups in
                found.items()]  # fmt: skip
        caption = f"{runs[0].metric} by {_named(key)}, with 95 % intervals"
        counts = next(iter(found.values()))
        heads = [f"{kind} ({len(counts[kind]):,})" if kind in counts else kind for kind in kinds]
        table = [["", *heads], *rows]
        if len(kinds) > len(rows):  # the longer list becomes the rows
            table = [list(column) for column in zip(*table, strict=True)]
        table[0][0] = "run" if len(kinds) <= len(rows) else _named(key)
        yield Table(caption, table[0], table[1:])


def _told(rows: Sequence[Row], metric: str) -> str:
    if not rows:
        return ""
    value, low, high = estimate(rows, metric)
    return f"{value:.3f} ({format_interval((low, high))})"


def estimate(rows: Sequence[Row], metric: str) -> tuple[float, float, float]:
    """Return the mean with its interval."""
    values = [float(row["scores"][metric]) for row in rows]
    return fmean(values), *bootstrap_interval(values, groups=[cluster_of_row(row) for row in rows])


def _against(own: Sequence[Row], blind: Mapping[str, Row], metric: str) -> tuple[str, str]:
    """Return the value of the same samples under a control, and the paired gap."""
    both = [(row, other) for row in own if (other := blind.get(row["id"])) is not None and metric in other["scores"]]
    if not both:
        return "", ""
    a, b = ([float(row["scores"][metric]) for row in rows] for rows in zip(*both, strict=True))
    low, high = bootstrap_difference(a, b, groups=[cluster_of_row(row) for row, _ in both])
    return f"{fmean(b):.3f}", f"{fmean(a) - fmean(b):+.3f} ({format_interval((low, high), '+')})"


def _named(key: str) -> str:
    return key.replace("_", " ")
