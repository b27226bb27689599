"""Rows of the results computed once more, from scratch: they must come out as the very same numbers."""

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import planning
from origin import machine
from perceptune.errors import UserError
from perceptune.evaluation.evaluate import evaluate
from perceptune.tools.compare.plan import make_plan, parse_grid
from perceptune.training.trainer import train
from planning import ROOT, RUNS, STUDIES, Part, Plan
from run import environment, process_of

AGAIN = RUNS / "again"


class Row(NamedTuple):
    """A number of the results, and the command that it is from."""

    part: Part
    command: str
    label: str
    seed: int | None  # None = an evaluation
    metric: str
    stored: float
    setting: Mapping[str, Any]  # what was chosen for the label
    threads: int


def run_again(plan: Plan, count: int, seed: int, raw: Path) -> int:
    """Runs `count` rows picked at random; returns 1 if one of them came out differently."""
    rows = rows_of(plan)
    if not rows:
        raise UserError(f"there are no results of this machine yet ({machine()}); on another one the last bits differ")
    differ = 0
    for row in random.Random(seed).sample(rows, min(count, len(rows))):
        with contextlib.chdir(ROOT):
            found = _computed(row, raw)
        same = found == row.stored
        differ += not same
        at = "" if row.seed is None else f", seed {row.seed}"
        verdict = "the same" if same else "DIFFERENT"
        print(f"{row.part.name}, {row.label}{at}: {row.metric} {row.stored!r}, again {found!r}: {verdict}", flush=True)
    return 1 if differ else 0


def rows_of(plan: Plan) -> list[Row]:
    """Every number of a comparison's seed and of an evaluation that this machine has computed."""
    rows = []
    for part in plan.parts:
        path = STUDIES / "results" / f"{part.name}.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["machine"] != machine():
                continue
            for table in result["tables"]:
                rows += [row for c in part.commands for row in _rows(part, c, table, result["threads"])]
    return rows


def _rows(part: Part, command: str, table: dict[str, Any], threads: int) -> list[Row]:
    """Those of a table that a command has made."""
    words = command.split()
    out = planning.option(words, "--out")
    if out is None or words[1] != table["kind"] or "--timing" in words:
        return []
    name = Path(out).name
    if table["kind"] == "compare" and name == table["name"]:
        return [
            Row(part, command, row["label"], int(seed), table["metric"], value, row["setting"], threads)
            for row in table["rows"] for seed, value in row["by_seed"].items()
        ]  # fmt: skip
    if table["kind"] == "eval" and Path(out).parent.name == table["name"]:
        return [
            Row(part, command, name, None, metric, row["values"][metric], {}, threads)
            for row in table["rows"] if row["label"] == name
            for metric in [planning.headline(row["metrics"])]
        ]  # fmt: skip
    return []


def _computed(row: Row, raw: Path) -> float:
    words = planning.words_of(row.command, raw)
    folder = ROOT / AGAIN / f"{row.part.name}-{row.label}-{row.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    if row.seed is None:
        out = words.index("--out") + 1
        words[out] = str(folder.relative_to(ROOT))
        subprocess.run(process_of(words), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment(row.threads))
        return float(json.loads((folder / "results.json").read_text(encoding="utf-8"))[row.metric])
    entry = next(entry for entry in _planned(words).entries if entry.label == row.label)
    recipe = entry.with_(row.setting, row.seed)
    torch.set_num_threads(row.threads)
    train(recipe, folder)
    return float(evaluate(folder, split=recipe.eval.split, samples=recipe.eval.samples)[row.metric])


def _planned(words: Sequence[str]) -> Any:
    """The plan of a `compare` command."""
    from perceptune.cli.main import parser

    options, rest = parser().parse_known_args(list(words[1:]))
    given = [*options.recipes, *options.overrides, *rest]
    recipes = [word for word in given if "=" not in word]
    overrides = [word for word in given if "=" in word]
    methods = [word for word in (options.methods or "").split(",") if word]
    return make_plan(recipes, overrides, methods=methods, grid=parse_grid(options.grid) if options.grid else None)
