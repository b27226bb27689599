"""The table of a comparison as JSON, CSV, Markdown and a chart."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from perceptune.data.bootstrap import bootstrap_difference, bootstrap_interval
from perceptune.data.tasks.base import ROUGE
from perceptune.errors import UserError
from perceptune.evaluation.clusters import cluster_of_row
from perceptune.evaluation.results import RESULTS, tokenizer_of
from perceptune.tools.compare.plan import Plan, PlannedRow, Setting, setting_name
from perceptune.tools.plots.figures import NEEDED, has_matplotlib, trade_off
from perceptune.tools.plots.layout import Mark
from perceptune.utils.atomic_io import write_json, write_text
from perceptune.utils.markdown import format_interval, markdown_table

NAME = "compare"  # of the files


@dataclass(frozen=True)
class Outcome:
    """Results of one row: the chosen setting, validation values, and the test of each seed."""

    entry: PlannedRow
    setting: Setting
    validation: Mapping[str, float]
    tests: Mapping[int, Mapping[str, Any]]  # seed -> results.json with `rows` and `speed`


def summarise(plan: Plan, outcomes: Sequence[Outcome], prior: Mapping[str, Any] | None, out: Path) -> dict[str, Any]:
    """Return the whole comparison; also writes `compare.json`, `.csv`, `.md` and, with matplotlib, `.png` into `out`.

    The interval is a bootstrap over test samples (clustered by medium) of the mean over seeds; the spread between seeds
    is listed beside it. `difference` is to the first row, on the same samples. `prior` is the score from the question
    alone (`prior.prior_of`).
    """
    _require_one_tokenizer(plan.metric, outcomes)
    first = _by_sample(plan.metric, outcomes[0])
    rows = [_row(plan, outcome, first) for outcome in outcomes]
    recipe = plan.entries[0].recipe
    steps = [test["train_samples"] for outcome in outcomes for test in outcome.tests.values()]
    result = {
        "metric": plan.metric, "test_on": plan.test_on, "test_samples": rows[0]["test_samples"],
        "select_on": plan.select_on, "settings": [dict(setting) for setting in plan.settings],
        "seeds": list(plan.seeds), "train_samples": max(steps), "batch_size": recipe.train.batch_size, "rows": rows,
        "prior": prior,
    }  # fmt: skip
    write_json(out / f"{NAME}.json", result)
    write_text(out / f"{NAME}.csv", as_csv(result))
    write_text(out / f"{NAME}.md", markdown(result))
    if has_matplotlib():
        marks = [Mark(row["label"], row["trained"], row[plan.metric], row["interval"] or None) for row in rows]
        trade_off(marks, out / f"{NAME}.png", plan.metric)
    else:
        print(f"warning: no {NAME}.png: {NEEDED}", file=sys.stderr)
    return result


def _require_one_tokenizer(metric: str, outcomes: Sequence[Outcome]) -> None:
    """Raise `UserError` if results kept from an earlier comparison split captions otherwise than the others."""
    found = {
        name: f"{outcome.entry.label}, seed {seed}"
        for outcome in outcomes for seed, test in outcome.tests.items()
        if (name := tokenizer_of(test.get("definition"), metric)) is not None
    }  # fmt: skip
    if len(found) > 1:
        (one, here), (other, there) = list(found.items())[:2]
        raise UserError(
            f"`{metric}` of {here} has the tokenizer `{one}`, that of {there} `{other}`: they cannot be compared; "
            f"delete the `{RESULTS}` of the older runs, and start again"
        )


def _row(plan: Plan, outcome: Outcome, first: Mapping[str, tuple[float, Any]]) -> dict[str, Any]:
    tests = list(outcome.tests.values())
    values = [test[plan.metric] for test in tests]
    speeds = [test["speed"] for test in tests if test["speed"]]
    own = _by_sample(plan.metric, outcome)
    both = [sample for sample in first if sample in own]
    groups = [own[sample][1] for sample in both]
    means = [own[sample][0] for sample in both]
    reference = [first[sample][0] for sample in both]
    shared = [key for key in tests[0]["metrics"] if all(key in test for test in tests)]
    return {
        "label": outcome.entry.label, "method": outcome.entry.recipe.method.name, "trained": outcome.entry.trained,
        "share": outcome.entry.share, "samples_per_second": fmean(speeds) if speeds else None,
        plan.metric: fmean(values), "spread": stdev(values) if len(values) > 1 else None,
        "interval": list(bootstrap_interval(means, groups=groups)) if means else None,
        "difference": fmean(means) - fmean(reference) if means else None,
        "difference_interval": list(bootstrap_difference(means, reference, groups=groups)) if means else None,
        "setting": dict(outcome.setting), "validation": dict(outcome.validation),
        "by_seed": {str(seed): test[plan.metric] for seed, test in outcome.tests.items()},
        "means": {key: fmean(test[key] for test in tests) for key in shared},
        "test_samples": tests[0]["evaluated_samples"],
        "train_seconds": fmean(test["train_seconds"] for test in tests),
    }  # fmt: skip


def _by_sample(metric: str, outcome: Outcome) -> dict[str, tuple[float, Any]]:
    """Return the mean over seeds of each test sample with the metric, and the media that it depends on."""
    tests = outcome.tests.values()
    found: dict[str, tuple[list[float], Any]] = {}
    for row in (row for test in tests for row in test["rows"] if metric in row["scores"]):
        found.setdefault(row["id"], ([], cluster_of_row(row)))[0].append(row["scores"][metric])
    return {sample: (fmean(values), media) for sample, (values, media) in found.items()}


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """Return heading and rows as text."""
    metric, first = result["metric"], result["rows"][0]["label"]
    shown = _rouge(result)
    heading = ["", "trained", "share", "samples/s", metric, "± seeds", "95 %", f"against {first}", *shown, "setting"]
    return [heading, *([
        row["label"], f"{row['trained']:,}", f"{100 * row['share']:.3f} %",
        _or_nothing(row["samples_per_second"], ".1f"), f"{row[metric]:.3f}", _or_nothing(row["spread"], ".3f"),
        format_interval(row["interval"]), "" if row["label"] == first else _difference(row),
        *(f"{row['means'][key]:.3f}" for key in shown), setting_name(row["setting"]),
    ] for row in result["rows"])]  # fmt: skip


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table with a line on how it was made."""
    heading, *rows = cells(result)
    return "\n".join([*markdown_table(heading, rows), "", terms(result)]) + "\n"


def terms(result: Mapping[str, Any]) -> str:
    """Describe how the numbers were made, in a sentence."""
    split, settings = result["select_on"], len(result["settings"])
    chosen = "" if split is None else f"; each row's setting is the best of {settings} on `{split}` with the first seed"
    trained, tested = f"{result['train_samples']:,} training samples", f"{result['test_samples']} samples"
    seeds = f"seed{'s' if len(result['seeds']) > 1 else ''} {', '.join(map(str, result['seeds']))}"
    return f"{trained} each; {tested} of `{result['test_on']}`, {seeds}{chosen}.{_prior(result)}"


def _prior(result: Mapping[str, Any]) -> str:
    """Describe the score from the question alone, if it was computed."""
    prior = result.get("prior")
    if prior is None:
        return ""
    value = f"{prior['value']:.3f} ({format_interval(prior['interval'])})"
    return f" Without media, each prompt's most frequent training answer has {value}."


def as_csv(result: Mapping[str, Any]) -> str:
    """Return one line per row, with unrounded numbers."""
    metric = result["metric"]
    columns = ["label", "method", "trained", "share", "samples_per_second", metric, "spread"]
    shown = _rouge(result)
    lines = [[*columns, "low", "high", "difference", "difference_low", "difference_high", *shown, "setting"]]
    for row in result["rows"]:
        spans = [*(row["interval"] or ["", ""]), row["difference"], *(row["difference_interval"] or ["", ""])]
        means = [row["means"][key] for key in shown]
        lines.append([*(row[key] for key in columns), *spans, *means, setting_name(row["setting"])])
    shown = _rouge(result)
    lines = [[*columns, "low", "high", "difference", "difference_low", "difference_high", *shown, "setting"]]
    for row in result["rows"]:
        spans = [*(row["interval"] or ["", ""]), row["difference"], *(row["difference_interval"] or ["", ""])]
        means = [row["means"][key] for key in shown]
        lines.append([*(row[key] for key in columns), *spans, *means, setting_name(row["setting"])])
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(lines)
    return written.getvalue()


def _rouge(result: Mapping[str, Any]) -> list[str]:
    """Return the ROUGE values over all references that every row has, as separate columns."""
    means = [row.get("means", {}) for row in result["rows"]]
    return [key for key in ROUGE if key.endswith("_mean") and all(key in one for one in means)]


def _or_nothing(value: float | None, shape: str) -> str:
    return "" if value is None else format(value, shape)


def _difference(row: Mapping[str, Any]) -> str:
    span = f" ({format_interval(row['difference_interval'], '+')})" if row["difference_interval"] else ""
    return _or_nothing(row["difference"], "+.3f") + span
