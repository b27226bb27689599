"""Output shared by several commands."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from perceptune.utils.run_log import is_main_process

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def print_found(found: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print what a command found, for a program or a person to read."""
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines))


def print_local_models(models: Sequence[str]) -> None:
    """Print which base models of a shared run others must obtain elsewhere."""
    for name in models:
        print(f"note: the base model `{name}` lies on this machine alone: who loads the run elsewhere needs a copy of "
              "it, and says where by lm.id=... or encoders.MODALITY.id=...")  # fmt: skip


def print_scores(results: dict[str, Any]) -> None:
    """Print summary values beside their controls, with intervals."""
    from perceptune.evaluation.controls import CONTROLS
    from perceptune.evaluation.results import gap_name, result_notes, shown_name

    first = results["metrics"][0]
    controls = [name for name in CONTROLS if f"{first}_{name}" in results] or ["shuffled"]
    words = {"shuffled": "media shuffled", "no_media": "no media", "exchanged": "media exchanged"}
    is_wide = len(controls) > 1  # more than 80 columns
    beside = [word for name in controls for word in (words[name], "gap (95 % interval)")]
    heading = [
        Column(word, no_wrap=True) for word in (["control", "value", "gap (95 % interval)"] if is_wide else beside)
    ]
    table = Table(Column("", no_wrap=True), "with its media", *heading)
    for key in results["metrics"]:
        row = [shown_name(key, results.get("definition")), f"{results[key]:.3f}"]
        compared = []
        for name in controls:
            other, gap = results.get(f"{key}_{name}"), gap_name(key, name)
            beaten = "" if other is None else _with_interval(results[gap], results[f"{gap}_interval"])
            compared.append(["" if other is None else f"{other:.3f}", beaten])
        if not is_wide:
            table.add_row(*row, *(cell for cells in compared for cell in cells))
            continue
        for name, cells in zip(controls, compared, strict=True):
            table.add_row(*row, words[name], *cells)
            row = ["", ""]
    out.print(table)
    print_confusions(results)
    where = f"{results['evaluated_samples']} samples of split `{results['split']}`"
    if results["trained_on_this_split"]:
        where += ": the run was trained on it, so this says nothing about new data (give a --validation file)"
    out.print(where)
    for sentence in result_notes(results):
        out.print(sentence, markup=False)
    if "others" in results:
        out.print(_gap_table(results["others"]))


def print_confusions(results: dict[str, Any]) -> None:
    """Print the tables of confusions of classes, if there are any."""
    from perceptune.evaluation.confusion import confusion_tables

    for caption, heading, rows in confusion_tables(results):
        table = Table(*(Column(Text(word)) for word in heading), title=Text(caption), title_justify="left")
        for row in rows:
            table.add_row(*map(Text, row))
        out.print(table)


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:+.3f}" if interval is None else f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def _gap_table(others: dict[str, Any]) -> Table:
    """Return a table of the run's own data set against others."""
    table = Table("other data", "", "own", "other", Column("own - other (95 % interval)", no_wrap=True))
    for name, other in others.items():
        for key in other["metrics"]:
            own, lead = "", ""
            if gap := other["gaps"].get(key):
                own = f"{gap['in']:.3f}"
                if gap["difference"] is None:
                    lead = f"none: tokenizers {' and '.join(gap['tokenizers'])}"
                else:
                    lead = _with_interval(gap["difference"], gap.get("interval"))
            table.add_row(f"{name}, {other['evaluated_samples']} samples", key, own, f"{other[key]:.3f}", lead)
    return table
