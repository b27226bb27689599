"""Reading the files of runs and comparisons. Missing or damaged files are noted, and the rest is read."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from perceptune.config.recipe import read_yaml
from perceptune.errors import UserError, nearest
from perceptune.evaluation.controls import CONTROLS
from perceptune.evaluation.model_card import read_results
from perceptune.evaluation.results import PREDICTIONS, RESULTS, predictions_name, same_tokenizer, tokenizer_of
from perceptune.models.run_folder import read_meta
from perceptune.models.run_location import META, RECIPE, is_address, local_run
from perceptune.tools.compare.report import NAME as COMPARISON
from perceptune.utils.run_log import read_log

_MAX_FOLDERS = 2000  # searched for the nearest name


class ReportedRun(NamedTuple):
    """A run folder as read. `results` is None for a run that was not evaluated."""

    name: str
    folder: Path
    meta: Mapping[str, Any]
    recipe: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None
    predictions: Sequence[Mapping[str, Any]]
    blind: Mapping[str, Mapping[str, Mapping[str, Any]]]  # control -> sample's id -> prediction
    problems: Sequence[str]

    @property
    def metric(self) -> str:
        """The first metric."""
        if self.results is not None:
            return str(self.results["metrics"][0])
        return next((str(key) for row in self.predictions for key in row["scores"]), "accuracy")


class Comparison(NamedTuple):
    """A folder of `perceptune compare`: its table, and the tested run of each row with the first seed."""

    name: str
    table: Mapping[str, Any]
    runs: Sequence[ReportedRun]


def gather(sources: Sequence[str]) -> tuple[list[ReportedRun], list[Comparison]]:
    """Read runs (folders, zip files, addresses) and comparisons. Raises `UserError` for anything else."""
    runs, comparisons = [], []
    for source, name in zip(sources, _short_names(sources), strict=True):
        folder = local_run(source)
        if (folder / f"{COMPARISON}.json").is_file():
            comparisons.append(_comparison(name, folder))
        elif (folder / META).is_file():
            runs.append(read_run(name, folder))
        else:
            raise UserError(f"`{source}` is neither a run folder nor one of a comparison{_nearest(folder)}")
    return runs, comparisons


def read_run(name: str, folder: Path) -> ReportedRun:
    """Read one run. Raises `UserError` only if its `meta.json` or `run.yaml`, which identify it, are unreadable."""
    problems: list[str] = []
    try:
        results = read_results(folder)
        problems += [f"It was not evaluated: there is no {RESULTS} (`perceptune eval`)."] if results is None else []
    except UserError as error:
        results = None
        problems.append(str(error))
    log = [row for row in read_log(folder) if isinstance(row, dict)]
    if not any(row.get("event") == "step" for row in log):
        problems.append("There is no log of its training.")
    predictions = _predictions(folder / PREDICTIONS, problems)
    blind = {
        control: {str(row["id"]): row for row in _predictions(path, problems)}
        for control in CONTROLS
        if (path := folder / predictions_name(control)).is_file()
    }
    meta, recipe = read_meta(folder), read_yaml(folder / RECIPE)
    return ReportedRun(name, folder, meta, recipe, log, results, predictions, blind, problems)


def is_comparable(run: ReportedRun, first: ReportedRun) -> bool:
    """Return whether the metric of the first has the same tokenizer in both, so that values may stand side by side."""
    return same_tokenizer(*(tokenizer_of((one.results or {}).get("definition"), first.metric) for one in (run, first)))


def number(value: Any) -> float | None:
    """Return a finite number of a file, else None."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else None


def span(value: Any) -> tuple[float, float] | None:
    """Return an interval of a file, else None."""
    ends = [number(end) for end in value] if isinstance(value, list) else []
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def _predictions(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = [_row(line) for line in path.read_bytes().splitlines()]
    if damaged := rows.count(None):
        problems.append(f"{path.name}: {damaged:,} damaged lines were left out.")
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a prediction with all its keys, in their types."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or "id" not in found:
        return None
    media, scores, targets = found.get("media"), found.get("scores"), found.get("targets")
    meta, history = found.get("meta"), found.get("history")
    return {
        "id": str(found["id"]), "prompt": str(found.get("prompt", "")), "answer": str(found.get("answer", "")),
        "media": {str(k): _names(v) for k, v in media.items()} if isinstance(media, dict) else {},
        "history": [turn for turn in history if _is_turn(turn)] if isinstance(history, list) else [],
        "scores": {k: v for k, v in scores.items() if number(v) is not None} if isinstance(scores, dict) else {},
        "targets": [str(one) for one in targets] if isinstance(targets, list) else [],
        "meta": meta if isinstance(meta, dict) else {},
    }  # fmt: skip


def _names(value: Any) -> str | list[str]:
    return [*map(str, value)] if isinstance(value, list) else str(value)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _comparison(name: str, folder: Path) -> Comparison:
    path = folder / f"{COMPARISON}.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table["rows"]:
            if not isinstance(row["label"], str) or None in (number(row[table["metric"]]), number(row["trained"])):
                raise ValueError
        if not table["rows"]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged: not what `perceptune compare` writes") from None
    first: dict[str, Path] = {}
    for run in sorted(path.parent for path in (folder / "runs").glob(f"*/*/seed-*/{RESULTS}")):
        if (run / META).is_file() and (run / RECIPE).is_file():
            first.setdefault(run.parents[1].name, run)
    order = [row["label"] for row in table["rows"]]
    labels = sorted(first, key=lambda label: (order.index(label) if label in order else len(order), label))
    return Comparison(name, table, [read_run(label, first[label]) for label in labels])


def _short_names(sources: Sequence[str]) -> list[str]:
    """Return for each source the shortest end of its path that is unique."""
    parts = [(source,) if is_address(source) else Path(source).absolute().parts for source in sources]
    ends = [[own[-length:] for length in range(1, len(own) + 1)] for own in parts]
    taken = Counter(end for each in ends for end in each)
    return ["/".join(next((end for end in each if taken[end] == 1), each[-1])) for each in ends]


def _nearest(folder: Path) -> str:
    """Return the run folders beside a folder, and those in `runs`."""
    places = product((folder.parent, folder, Path("runs")), (META, f"{COMPARISON}.json"))
    found = (path for place, name in places for path in islice(place.glob(f"*/{name}"), _MAX_FOLDERS))
    return nearest(str(folder), {str(path.parent) for path in found})
