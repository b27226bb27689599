"""Sections of a report, from the gathered files."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open

from perceptune.evaluation.confusion import confusion_tables
from perceptune.evaluation.model_card import model_name, one_line, part_name
from perceptune.evaluation.results import gap_name, result_notes, shown_name
from perceptune.models.run_location import METHOD, PROOF
from perceptune.tools.compare.report import cells, terms
from perceptune.tools.compare.run import training_speed
from perceptune.tools.plots.layout import Mark, Point, series, smooth
from perceptune.tools.report.answers import grids, together
from perceptune.tools.report.blocks import Block, Chart, Code, Report, Section, Table, Words, grouped, without_empty
from perceptune.tools.report.charts import Bar, Series, bars, curves, trade_off
from perceptune.tools.report.gather import Comparison, ReportedRun, is_comparable, number, span
from perceptune.tools.report.questions import estimate, questions
from perceptune.utils.markdown import format_interval


def make_report(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison], *, samples: int, media: bool) -> Report:
    """Return all sections; `samples` right and as many wrong answers of each run, with or without their media."""
    every = [*runs, *(run for one in comparisons for run in one.runs)]
    names = [*(run.name for run in runs), *(one.name for one in comparisons)]
    sections = [_overview(runs)] if runs else []
    several = len(every) > 1
    joint = together(every, samples, media=media) if several else []
    sections += [
        *map(_compared, comparisons), *_classes(every), _training(every),
        Section("Answers by type of question", list(questions(every))),
        Section("Questions and answers", [_GRIDS, *joint]),
        *(Section(run.name, grids(run, samples, media=media), level=3, folded=several) for run in every),
        _parameters(every), _timing(every), _reproduction(every),
    ]  # fmt: skip
    return Report(", ".join(names), sections)


_GRIDS = Words(
    "Right answers, then the limits: wrong ones by kind, with what was expected. Samples are taken evenly over the "
    "evaluated set, not chosen; where the control was measured, the answer with another sample's media follows."
)
_AGAIN = Words(
    "A run's `run.yaml` is its whole recipe, defaults included. The same recipe on the same versions and data "
    "gives the same run; the commands below make it anew beside the old one."
)


def _overview(runs: Sequence[ReportedRun]) -> Section:
    """Return the section of all numbers with their controls; several runs also as charts."""
    blocks: list[Block] = [Words(_summary(run)) for run in runs]
    blocks += [Words(f"{run.name}: {problem}", "bad") for run in runs for problem in run.problems]
    heading = ("run", "method", "metric", "value", "95 %", "media shuffled", "gap (95 %)", "no media", "gap (95 %)",
               "samples", "split")  # fmt: skip
    rows = [row for run in runs for row in _values(run)]
    if rows:
        caption = "Results with their controls: the same questions with other media, and without any"
        known = 2 if len(runs) == 1 else 0  # run and method are in the heading
        blocks.append(without_empty(Table(caption, heading[known:], [row[known:] for row in rows])))
    told = "was trained on these samples: the numbers say nothing on new data."
    blocks += [Words(f"{run.name} {told}", "bad") for run in runs if (run.results or {}).get("trained_on_this_split")]
    blocks += [Words(f"{run.name}: {words}.") for run in runs for words in result_notes(run.results or {})]
    blocks += _others(runs)
    measured = [run for run in runs if _first(run) is not None]
    if len(measured) > 1:
        metric = measured[0].metric
        found = [run for run in measured if metric in (run.results or {}) and is_comparable(run, measured[0])]
        blocks += _images([(run.name, _trained(run), *_value(run, metric)) for run in found], metric)
    return Section("Results", blocks)


def _summary(run: ReportedRun) -> str:
    """Return the run's description and result in a sentence or two."""
    models = " and ".join(_model(name, part) for name, part in _base(run))
    share = f" ({shown} of all)" if (shown := _share(run)) else ""
    method, task = (part_name(run.recipe.get(part)) for part in ("method", "task"))
    trained = f"{_trained(run):,} parameters trained{share}."
    told = f"{run.name}: method {method} on {task} with {models or 'base models'}; {trained}"
    if _first(run) is None:
        return told
    value, interval, blind = _value(run, run.metric)
    near = "" if interval is None else f" (95 % interval {format_interval(interval)})"
    other = "" if blind is None else f"; {blind:.3f} with other media"
    samples = _shown((run.results or {}).get("evaluated_samples"), ",.0f")
    return f"{told} Its {run.metric.replace('_', ' ')} is {value:.3f}{near}{other}, on {samples} samples."


def _values(run: ReportedRun) -> Iterator[list[str]]:
    results = run.results
    if results is None:
        return
    for key in map(str, results["metrics"]):
        scored = [row for row in run.predictions if key in row["scores"]]
        # A run of an earlier version has the interval of its first metric only.
        found = _span(results.get(f"{key}_interval")) or (_span([*estimate(scored, key)[1:]]) if scored else "")
        shown = shown_name(key, results.get("definition"))
        row = [run.name, part_name(run.recipe.get("method")), shown, f"{results[key]:.3f}", found]
        for control in ("shuffled", "no_media"):
            gap = gap_name(key, control)
            row += [_shown(results.get(f"{key}_{control}"), ".3f"), _with_span(results, gap)]
        count = f"{len(scored):,}" if scored else _shown(results.get("evaluated_samples"), ",.0f")
        yield [*row, count, str(results.get("split", ""))]


def _others(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    """Yield the tables of other data sets, and the gap to them."""
    rows = []
    for run in runs:
        others = (run.results or {}).get("others")
        for name, other in others.items() if isinstance(others, Mapping) else ():
            for key, gap in other.get("gaps", {}).items():
                lead = _shown(gap.get("difference"), "+.3f")
                if isinstance(tokenizers := gap.get("tokenizers"), list):
                    lead = f"none: tokenizers {' and '.join(map(str, tokenizers))}"
                rows.append([run.name, name, key, _shown(gap.get("in"), ".3f"), _shown(gap.get("out"), ".3f"),
                             lead, _span(gap.get("interval"), "+")])  # fmt: skip
    if rows:
        yield Table("Other data sets", ("run", "data set", "metric", "own", "other", "own - other", "95 %"), rows)


def _classes(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """Yield the section of the confusions between classes, if a run has any."""
    tables = [
        Table(f"{run.name}, {caption}", heading, rows)
        for run in runs for caption, heading, rows in confusion_tables(run.results or {})
    ]  # fmt: skip
    if tables:
        yield Section("Classes", tables)


def _compared(one: Comparison) -> Section:
    table, metric = one.table, str(one.table["metric"])
    try:
        heading, *rows = cells(table)
        blocks: list[Block] = [without_empty(Table(terms(table), [word or "row" for word in heading], rows))]
    except (KeyError, TypeError, ValueError):  # of a later version, or written by hand
        rows = [[row["label"], f"{row['trained']:,}", f"{row[metric]:.3f}"] for row in table["rows"]]
        blocks = [Table("The comparison, as far as it can be read", ("row", "trained", metric), rows)]
    blocks += [Words(f"{run.name}: {problem}", "bad") for run in one.runs for problem in run.problems]
    measured = [(row["label"], int(row["trained"]), float(row[metric]), span(row.get("interval")), None)
                for row in table["rows"]]  # fmt: skip
    return Section(f"Comparison: {one.name}", [*blocks, *_images(measured, metric)])


_Measured = tuple[str, int, float, tuple[float, float] | None, float | None]


def _images(rows: Sequence[_Measured], metric: str) -> Iterator[Chart]:
    """Yield bar charts and, for several runs, a chart of value against trained parameters."""
    if not rows:
        return
    yield bars([Bar(name, value, interval, blind) for name, _, value, interval, blind in rows], metric)
    marks = [Mark(name, trained, value, interval) for name, trained, value, interval, _ in rows if trained > 0]
    if len(marks) > 1:
        yield trade_off(marks, metric)


def _training(runs: Sequence[ReportedRun]) -> Section:
    losses: list[tuple[str, list[Point]]] = []
    scores: dict[str, list[Series]] = {}
    for run in runs:
        rows = [row for row in run.log if number(row.get("samples")) is not None]
        if points := series(rows, "step", "loss"):
            losses.append((run.name, points))
        if points := series(rows, "eval", run.metric):
            scores.setdefault(run.metric, []).append(Series(run.name, points))
    if not losses:
        return Section("Training", [Words("No log of a training was found.", "bad")])
    raw = [Series("each step", losses[0][1], faint=True)] if len(losses) == 1 else []
    means = [(name, smooth(points)) for name, points in losses]
    what = "training loss" if means == losses else "training loss, running mean"  # short trainings are not smoothed
    loss = curves([Series(name, points) for name, points in means] + raw, what)
    return Section("Training", [loss, *(curves(many, f"{metric} while training") for metric, many in scores.items())])


def _parameters(runs: Sequence[ReportedRun]) -> Section:
    rows, parts, bases = [], [], []
    for run in runs:
        counts = [_shown(run.meta.get(key), ",.0f") for key in ("trained", "frozen")]
        rows.append([run.name, *counts, _share(run)])
        parts += [[run.name, *part] for part in _parts(run)]
        for part, found in _base(run):
            bases.append([run.name, part, _model(part, found), str(found.get("fingerprint"))[:16]])
    blocks: list[Block] = [
        Table("Trained and frozen parameters", ("run", "trained", "frozen", "trained share"), rows),
        Table("What is stored of each method, statistics of features included",
              ("run", "part", "tensors", "numbers", "MB"), parts),
        grouped(Table("Base models", ("run", "part", "model", "fingerprint"), bases)),
    ]  # fmt: skip
    return Section("Parameters", blocks)


def _parts(run: ReportedRun) -> Iterator[list[str]]:
    """Yield the method's tensors by the first part of their names; only shapes are read."""
    sizes: dict[str, list[int]] = {}
    try:
        with safe_open(run.folder / METHOD, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                sizes.setdefault(name.partition(".")[0], []).append(math.prod(file.get_slice(name).get_shape()))
    except (OSError, SafetensorError) as error:
        yield [f"{METHOD} cannot be read ({error})", "", "", ""]
    for part, counts in sizes.items():
        yield [part, str(len(counts)), f"{sum(counts):,}", f"{4 * sum(counts) / 1e6:.2f}"]  # stored in float32


def _timing(runs: Sequence[ReportedRun]) -> Section:
    rows = []
    for run in runs:
        steps = [row for row in run.log if row.get("event") in ("step", "end")]
        last: Mapping[str, Any] = steps[-1] if steps else {}
        seen = [_shown(last.get(key), ",.0f") for key in ("step", "samples")]
        evaluations = sum(row.get("event") == "eval" for row in run.log)
        rows.append([run.name, *seen, _shown(last.get("seconds"), ",.1f"), _speed(run), str(evaluations)])
    heading = ("run", "steps", "samples seen", "seconds", "samples/s of a typical step", "evaluations")
    return Section("Timing", [Table("The trainings; seconds include features and evaluations", heading, rows)])


def _speed(run: ReportedRun) -> str:
    try:
        speed = training_speed(run.folder)
    except (KeyError, TypeError):  # a log of another program
        return ""
    return "" if speed is None else f"{speed:.1f}"


def _reproduction(runs: Sequence[ReportedRun]) -> Section:
    rows, lines = [], []
    for run in runs:
        folder = str(run.folder)
        again = f"{folder}-again"
        lines += [f"# {' '.join(run.name.split())}"] if len(runs) > 1 else []
        lines.append(shlex.join(["perceptune", "train", f"{folder}/run.yaml", "--run", again]))
        command = (run.results or {}).get("command")
        if isinstance(command, str):
            lines += ["# as it was evaluated:", " ".join(command.split())]
        lines.append(shlex.join(["perceptune", "eval", again]))
        if (run.folder / PROOF).is_file():
            lines.append(shlex.join(["perceptune", "verify", folder]))
        found = run.meta.get("versions")
        versions = {"perceptune": run.meta.get("perceptune"), **(found if isinstance(found, Mapping) else {}),
                    "Python": run.meta.get("python")}  # fmt: skip
        rows.append([run.name, ", ".join(f"{name} {version}" for name, version in versions.items())])
    table = grouped(Table("Versions that the runs were made with", ("run", "versions"), rows))
    return Section("How to make it again", [_AGAIN, Code("\n".join(lines)), table])


def _base(run: ReportedRun) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the readable base models by part."""
    base = run.meta.get("base") or {}
    return [(str(part), found) for part, found in base.items() if isinstance(found, Mapping)]


def _share(run: ReportedRun) -> str:
    share = number(run.meta.get("trained_share"))
    return "" if share is None else f"{100 * share:.3f} %"


def _model(part: str, found: Mapping[str, Any]) -> str:
    """Return a base model's name; for a local folder its last part only."""
    return one_line(model_name(part, found.get("id")))


def _first(run: ReportedRun) -> float | None:
    return None if run.results is None else number(run.results.get(run.metric))


def _value(run: ReportedRun, metric: str) -> tuple[float, tuple[float, float] | None, float | None]:
    results = run.results or {}
    return float(results[metric]), span(results.get(f"{metric}_interval")), number(results.get(f"{metric}_shuffled"))


def _trained(run: ReportedRun) -> int:
    return int(number(run.meta.get("trained")) or 0)


def _with_span(results: Mapping[str, Any], key: str) -> str:
    value = _shown(results.get(key), "+.3f")
    return f"{value} ({_span(results.get(f'{key}_interval'), '+')})" if value else ""


def _span(value: Any, sign: str = "") -> str:
    return format_interval(span(value), sign)


def _shown(value: Any, shape: str) -> str:
    found = number(value)
    return "" if found is None else format(found, shape)
