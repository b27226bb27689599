"""Scoring of existing answers, by this or another program, with a task's metrics and without a model."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceptune.config.schema import NamedPart
from perceptune.data.records import short
from perceptune.data.storage import local_path
from perceptune.errors import UserError, error_prefix, nearest
from perceptune.evaluation import results as report
from perceptune.evaluation.evaluate import evaluated_set, is_trained_on
from perceptune.evaluation.runner import EvalOutput, Prediction
from perceptune.evaluation.score_files.files import entries
from perceptune.models.run_folder import make_writable, read_recipe
from perceptune.types import Sample
from perceptune.utils.atomic_io import write_json


def rescore(
    run: str | Path, file: str | Path, into: str | Path, *, split: str | None = None, samples: int | None = None,
    task: Mapping[str, Any] | None = None, trust: bool = False, command: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score the answers in a `file` (`id`, and `raw`, `answer` or `prediction`) on the run's task, or on `task`.

    Writes `results.json` and `predictions.jsonl` into the folder `into` and returns the results. The file must contain
    one answer to each sample that `evaluate` would select, in any order. Raises `UserError` otherwise.
    """
    file, folder = local_path(str(file), "--predictions"), Path(into)
    recipe = read_recipe(Path(run), trust=trust)
    own = evaluated_set(recipe, None if task is None else NamedPart(**task), split, samples)
    if (folder / report.PREDICTIONS).absolute() == file.absolute():
        raise UserError(f"{file}: the results would overwrite it: name another folder")
    make_writable(folder, "name another folder for the results by --out")
    answers = [Prediction(raw) for raw in _answers(file, own.samples)]
    judged = EvalOutput(own.task.score([one.raw for one in answers], own.samples), answers)
    report.write_predictions(folder / report.PREDICTIONS, own.samples, own.task, judged)
    results = {
        **report.metric_values(own.task, own.samples, judged), **own.counts(),
        "split": own.split, "predictions": {"file": str(file), "sha256": report.file_hash(file)},
        "versions": report.versions(), "command": command,
        "data": report.dataset_info(own.part, own.split, own.samples),
        "trained_on_this_split": is_trained_on(recipe, own, is_own=task is None),
    }  # fmt: skip
    write_json(folder / report.RESULTS, results)
    return results


def _answers(file: Path, samples: Sequence[Sample]) -> list[str]:
    """Read the answer to each sample."""
    found: dict[str, str] = {}
    for entry in entries(str(file), lambda note: print(note, file=sys.stderr)):
        with error_prefix(entry.where):
            name, text = _answer_in(entry.values)
            if name in found:
                raise UserError(f"a second answer to `{short(name)}`")
        found[name] = text
    wanted = {sample.id for sample in samples}
    for name in found:
        if name not in wanted:
            raise UserError(f"{file}: `{short(name)}` is none of the {len(wanted)} evaluated samples"
                            f"{'' if len(wanted) > 1000 else nearest(name, wanted)}")  # fmt: skip
    lacking = [sample.id for sample in samples if sample.id not in found]
    if lacking:
        raise UserError(f"{file}: {len(lacking)} of {len(samples)} evaluated samples have no answer in it, first "
                        f"`{short(lacking[0])}`; a smaller evaluation is named by --samples")  # fmt: skip
    return [found[sample.id] for sample in samples]


def _answer_in(row: Mapping[str, Any]) -> tuple[str, str]:
    name = row.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UserError("a row needs an `id`")
    if "error" in row and "raw" not in row:
        raise UserError(f"`{short(str(name))}` was not answered: {short(str(row['error']))}")
    text = next((row[key] for key in ("raw", "answer", "prediction") if key in row), None)
    if not isinstance(text, str):
        raise UserError("a row needs a string `raw`, `answer` or `prediction`")
    return str(name), text
