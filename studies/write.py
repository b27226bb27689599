"""Writes `studies/README.md` and its pictures from the results, the published figures and the readings.

python studies/write.py            writes them
python studies/write.py --check    says whether they are what it would write
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import planning
from drawing import drawing_of
from perceptune.evaluation.results import gap_name
from perceptune.tools.compare.plan import setting_name
from perceptune.utils.markdown import markdown_table
from planning import STUDIES, Part, Plan
from verdicts import FOUNDED, difference, edge, load_readings, t_interval

NOT_RUN, NOT_READ = "*Not run yet.*", "*Not read yet.*"
Published = Mapping[str, Any]


def main(check: bool) -> int:
    written = pages(STUDIES)
    if check:
        stale = [path for path, text in written.items() if not path.is_file() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path.relative_to(STUDIES)} is out of date: python studies/write.py")
        return 1 if stale else 0
    for old in (STUDIES / "pictures").glob("*.svg"):
        old.unlink()
    for path, text in written.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(written)} files, the page is studies/README.md")
    return 0


def pages(folder: Path) -> dict[Path, str]:
    """Every file and what it holds, from what lies in the folder of the studies."""
    plan = planning.load_plan(folder / "plan.yaml")
    published = yaml.safe_load((folder / "published.yaml").read_text(encoding="utf-8"))
    readings = load_readings(folder / "readings.yaml", plan)
    made: dict[Path, str] = {}
    shown: set[str] = set()
    text = [_head(plan, published["note"])]
    for part in plan.parts:
        result = _result(folder, part)
        reading = _reading(readings.get(part.name), result)
        text += [f"\n## {part.title}\n\n`{part.name}`: {part.question}\n", reading, ""]
        if result is None:
            text.append(f"{NOT_RUN}\n")
        else:
            for number, table in enumerate(result["tables"]):
                text.append(_table(table))
                if drawn := drawing_of(table):
                    path = folder / "pictures" / f"{part.name}-{number}.svg"
                    made[path] = drawn.text
                    text.append(f"![{drawn.alt}](pictures/{path.name})\n")
            text.append(_how(result))
        text += [_published(name, published["tables"][name]) for name in part.published if name not in shown]
        if again := [_named(name) for name in part.published if name in shown]:
            text.append(f"Published: {', '.join(again)}, above.\n")
        shown.update(part.published)
    text.append(_open(plan))
    made[folder / "README.md"] = "\n".join(text).rstrip("\n") + "\n"
    return made


def _head(plan: Plan, note: str) -> str:
    return f"""# The papers' findings on real data

Written by `python studies/write.py` from `results/`, `published.yaml` and `readings.yaml`; do not edit it.

Every part of [plan.yaml](plan.yaml) is run by `make study DATA=DIR` (about {plan.hours:.1f} hours on two cores);
`python studies/run.py DATA --part NAME` runs one. A part shows the measurements, the commands, our reading, and the
papers' figures. {note}

A claim *holds* or *does not hold* on the data of a part if one row is ahead of another and both 95 % intervals of the
difference exclude 0 (the t interval over at least three seeds and the bootstrap interval over test media), if the
best setting of each row lies inside its grid, and if the two rows differ in one thing only. Otherwise we *cannot
tell*, and state the reason. A part is *measured* if nothing is claimed. `python studies/verdicts.py` applies this
rule to every reading.

Intervals are 95 % intervals of bootstrap resamples of whole media; those in the column "seed by seed" are t intervals
of the mean difference. ± is the standard deviation over seeds. CIDEr and BLEU are x 100, accuracies and shares in per
cent. *The question alone* is the accuracy of giving each question its most frequent training answer, without media.
Photos, audio and videos belong to their authors: none is shown here.

`python studies/run.py DATA --again 3` computes three randomly selected rows again, from scratch. On the machine that
a part names, its numbers are reproduced to the last bit; another CPU rounds differently, and training amplifies the
difference.

{planning.listing(plan)}"""


def _result(folder: Path, part: Part) -> dict[str, Any] | None:
    path = folder / "results" / f"{part.name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def _reading(reading: Mapping[str, Any] | None, result: Mapping[str, Any] | None) -> str:
    if reading is None:
        return NOT_READ
    rows = reading.get("rows") if reading["verdict"] in FOUNDED else None
    evidence = "" if result is None or rows is None else f" {_evidence(result, *rows)}"
    return f"**{reading['verdict'].capitalize()}.**{evidence} {reading['text'].strip()}"


def _evidence(result: Mapping[str, Any], ahead: str, behind: str) -> str:
    """The difference on which a verdict rests."""
    found = difference(result, ahead, behind)
    return (
        f"`{ahead}` is ahead of `{behind}` by {100 * found.value:.1f} ({_span(found.seeds)} over seeds, "
        f"{_span(found.media)} over media)."
    )


def _table(table: Mapping[str, Any]) -> str:
    rows = {"compare": _compared, "eval": _evaluated, "timing": _timed, "figures": _figures}[table["kind"]](table)
    return f"`{table['name']}`{_terms(table)}\n\n" + markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the heading."""
    return "\n".join(markdown_table(rows[0], rows[1:])) + "\n"


def _terms(table: Mapping[str, Any]) -> str:
    if table["kind"] == "eval":
        return _definition(table["rows"][0]["definition"])
    if table["kind"] != "compare":
        return f": {table['note']}" if "note" in table else ""
    seeds = ", ".join(map(str, table["seeds"]))
    chosen = f"each row's setting is the best of {len(table['settings'])} on `{table['select_on']}`"
    return (
        f": {table['train_samples']:,} training samples each, {table['test_samples']} of `{table['test_on']}`, "
        f"seeds {seeds}; {chosen if table['select_on'] else 'one setting for each row'}{_prior(table)}"
    )


def _prior(table: Mapping[str, Any]) -> str:
    """What the wording of the questions is worth; nothing for captions."""
    if (prior := table["prior"]) is None:
        return ""
    value = f"{_percent(prior['value'])} ({_span(prior['interval'])})"
    return f". **The question alone** has {value}"


def _definition(definition: Any) -> str:
    """How captions were judged."""
    if not isinstance(definition, dict) or "df" not in definition:
        return ""
    df = definition["df"]
    return f": tokenizer `{definition['tokenizer']}`; CIDEr's df from the {df['source']} of {df['documents']} media"


def _compared(table: Mapping[str, Any]) -> list[list[str]]:
    metric, first = table["metric"], table["rows"][0]["label"]
    more = [key for key in ("BLEU-4",) if key in table["rows"][0]["means"]]
    heading = ["", "trained", "share", "samples/s", metric, "95 %", f"against `{first}`", "seed by seed"]
    heading += [*more, "setting", "s per run"]
    rows = []
    for row in table["rows"]:
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        difference = "" if row["label"] == first or row["difference"] is None else (
            f"{100 * row['difference']:+.1f} ({_span(row['difference_interval'], '+')})"
        )  # fmt: skip
        speed = row["samples_per_second"]
        seconds = row["run_seconds"]
        rows.append([
            f"`{row['label']}`", f"{row['trained']:,}", f"{100 * row['share']:.3f} %",
            "" if speed is None else f"{speed:.0f}", f"{100 * row[metric]:.1f}{spread}", _span(row["interval"]),
            difference, _seed_by_seed(row, table["rows"][0]),
            *(_with_span(row["means"][key], row["bleu_interval"]) for key in more), _setting(row),
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        ])  # fmt: skip
    return [heading, *rows]


def _setting(row: Mapping[str, Any]) -> str:
    """The chosen setting, and whether it ends the grid: a better one may lie beyond."""
    end = edge(row)
    return setting_name(row["setting"]) + (f" ({end} of {len(row['validation'])})" if end else "")


def _seed_by_seed(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The difference to the first row in each seed, with the t interval of its mean from three on."""
    if row is first or len(row["by_seed"]) < 2:
        return ""
    values = [value - first["by_seed"][seed] for seed, value in row["by_seed"].items()]
    span = f" ({_span(t_interval(values), '+')})" if len(values) > 2 else ""
    return ", ".join(f"{100 * value:+.1f}" for value in values) + span


def _evaluated(table: Mapping[str, Any]) -> list[list[str]]:
    """One line for each metric of a row, and for each of its other data sets."""
    rows = [["", "samples", "metric", "value", "95 %", "media shuffled; gap", "no media; gap", "own - other"]]
    for row in table["rows"]:
        values = row["values"]
        for metric in row["metrics"]:
            controls = [_control(values, metric, name) for name in ("shuffled", "no_media")]
            rows.append([f"`{row['label']}`", str(row["samples"]), metric, _percent(values[metric]),
                         _span(values.get(f"{metric}_interval")), *controls, ""])  # fmt: skip
        for name, other in row["others"].items():
            for metric, gap in other["gaps"].items():
                rows.append([f"`{row['label']}`: {name}", str(other["samples"]), metric, _percent(other[metric]),
                             _span(other.get(f"{metric}_interval")), "", "",
                             f"{100 * gap['difference']:+.1f} ({_span(gap.get('interval'), '+')})"])  # fmt: skip
            if not other["gaps"]:
                metric = other["metric"]
                rows.append([f"`{row['label']}`: {name}", str(other["samples"]), metric, _percent(other[metric]),
                             _span(other.get(f"{metric}_interval")), "", "", ""])  # fmt: skip
    return rows


def _control(values: Mapping[str, Any], metric: str, name: str) -> str:
    """A value without the right media, and how far seeing beats it."""
    if f"{metric}_{name}" not in values:
        return ""
    gap = gap_name(metric, name)
    beaten = f"; {100 * values[gap]:+.1f} ({_span(values.get(f'{gap}_interval'), '+')})" if gap in values else ""
    return _percent(values[f"{metric}_{name}"]) + beaten


def _timed(table: Mapping[str, Any]) -> list[list[str]]:
    heading = ["", "trained", "features", "s per step", "ratio", "samples/s"]
    return [heading, *([
        f"`{row['label']}`", f"{row['trained']:,}", row["features"], f"{row['step_s']:.3f}", f"{row['ratio']:.2f}",
        f"{row['samples_per_s']:.1f}",
    ] for row in table["rows"])]  # fmt: skip


def _figures(table: Mapping[str, Any]) -> list[list[str]]:
    """What a script measured: rows of `label`, `value`, `interval`, `samples` and `what`."""
    rows = [["", "what", "samples", "value", "95 %"]]
    for row in table["rows"]:
        rows.append([row["label"], row["what"], str(row["samples"]), _percent(row["value"]), _span(row["interval"])])
    return rows


def _how(result: Mapping[str, Any]) -> str:
    commands = "\n".join(result["commands"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine, minutes = f"{result['machine']}, {result['threads']} in use", f"{result['seconds'] / 60:.1f} minutes"
    states = result.get("states", 1)
    mixed = f"; runs of {states} versions of the code" if states > 1 else ""
    return f"```text\n{commands}\n```\n\nCommit {result['commit']}; {versions}; {machine}; {minutes}{mixed}.\n"


def _published(name: str, table: Published) -> str:
    note = f"; {table['note']}" if "note" in table else ""
    rows = [["", *(column["name"] for column in table["columns"])]]
    rows += [
        [row, *("" if value is None else f"{value:g}" for value in values)] for row, values in table["rows"].items()
    ]
    head = f"<details><summary>{_named(name)}: {table['title']} (published, not comparable{note})</summary>"
    return f"{head}\n\n{markdown(rows)}\n</details>\n"


def _named(name: str) -> str:
    """`epalm-table-1` -> `eP-ALM, Table 1`."""
    paper, _, which = name.partition("-")
    return f"{'eP-ALM' if paper == 'epalm' else 'PETAL'}, {which.replace('-', ' ').capitalize()}"


def _open(plan: Plan) -> str:
    lines = [f"- {one.title} ({'; '.join(map(_named, one.published))}): {one.reason}" for one in plan.open]
    return "\n## Cannot tell here\n\n" + "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _with_span(value: float, interval: Sequence[float] | None) -> str:
    return f"{100 * value:.1f} ({_span(interval)})"


def _span(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
