"""Answers of several lines stay whole on both sides; lists written as text are read as several targets, or refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perceptune.config.registry import leaf
from perceptune.data.records import Record
from perceptune.data.tasks.base import Task, answers_of
from perceptune.errors import UserError
from perceptune.evaluation.score_files.run import score_files
from perceptune.tools.datasets.format_report import format_report
from perceptune.tools.datasets.validate import validate_dataset

pytestmark = pytest.mark.usefixtures("own_cache")
REPORTS = ["Findings: the lungs are clear.\nImpression: normal.", "Findings: a fracture.\nImpression: broken."]
WRONG = [text.replace("Impression: ", "Impression: not ") for text in REPORTS]


def jsonl(folder: Path, targets: list[Any]) -> dict[str, Any]:
    rows = [{"image": "1.jpg", "prompt": "what?", "targets": text} for text in targets]
    return {"name": "jsonl", "train": put(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))}


def table(folder: Path, targets: list[Any]) -> dict[str, Any]:
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "prompt", "targets"], *(["1.jpg", "what?", text] for text in targets)])
    return {"name": "csv", "train": str(folder / "rows.csv")}


def folder(place: Path, targets: list[Any]) -> dict[str, Any]:
    with (place / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "prompt", "text"], *(["1.jpg", "what?", text] for text in targets)])
    return {"name": "folder", "train": str(place)}


Writer = Callable[[Path, list[Any]], dict[str, Any]]
READERS = pytest.mark.parametrize("writer", [jsonl, table, folder])


def put(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def task_of(given: dict[str, Any], **more: Any) -> Task:
    module = leaf("tasks", given["name"]).module
    options = {key: value for key, value in given.items() if key != "name"}
    task: Task = module.TASK(module.TASK.Options(check_files=False, **options, **more))
    return task


def scored_apart(folder: Path, predictions: list[str], targets: list[list[str]], metric: str, **more: Any) -> float:
    """What `score` says of the same texts."""
    given = "".join(json.dumps({"id": n, "prediction": text}) + "\n" for n, text in enumerate(predictions))
    held = "".join(json.dumps({"id": n, "targets": texts}) + "\n" for n, texts in enumerate(targets))
    files = put(folder / "p.jsonl", given), put(folder / "r.jsonl", held)
    return float(next(iter(score_files(*files, [metric], intervals=False, **more).result.values())))


@READERS
def test_every_line_of_an_answer_counts(writer: Writer, tmp_path: Path) -> None:
    task = task_of(writer(tmp_path, REPORTS))
    samples = task.samples("train")
    assert [sample.targets for sample in samples] == [(text,) for text in REPORTS]
    assert [task.clean(f" {text}\n") for text in REPORTS] == [text.removesuffix(".") for text in REPORTS]
    assert task.score(REPORTS, samples).summary["accuracy"] == 1
    assert task.score(WRONG, samples).summary["accuracy"] == 0
    targets = [list(sample.targets) for sample in samples]
    assert scored_apart(tmp_path, [task.clean(text) for text in REPORTS], targets, "exact") == 1
    assert scored_apart(tmp_path, WRONG, targets, "exact") == 0


@READERS
def test_captions_of_several_lines_are_scored_as_they_are(writer: Writer, tmp_path: Path) -> None:
    task = task_of(writer(tmp_path, REPORTS), metric="CIDEr", group_rows=False)
    samples = task.samples("train")
    for texts in (REPORTS, WRONG):
        summary = task.score(texts, samples).summary
        targets = [list(sample.targets) for sample in samples]
        said = scored_apart(tmp_path, [task.clean(text) for text in texts], targets, "caption")
        assert said == summary["BLEU-1"]
    assert task.score(REPORTS, samples).summary["BLEU-4"] == pytest.approx(1)


def test_the_first_line_alone_is_judged_on_both_sides_if_a_task_says_so(tmp_path: Path) -> None:
    task = task_of(jsonl(tmp_path, REPORTS), first_line=True)
    samples = task.samples("train")
    assert [task.clean(text) for text in WRONG] == ["Findings: the lungs are clear", "Findings: a fracture"]
    assert task.score(WRONG, samples).summary["accuracy"] == 1
    targets = [list(sample.targets) for sample in samples]
    assert scored_apart(tmp_path, WRONG, targets, "exact", first_lines=True) == 1


def test_check_says_what_becomes_of_several_lines(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [*REPORTS, "clear"])["train"]
    for overrides, fate in ([], "all of them are kept"), (["task.first_line=true"], "only the first is judged"):
        said = "\n".join(format_report(validate_dataset(file, ["task.check_files=false", *overrides]), 0))
        assert f"2 of 3 targets have several lines; {fate}" in said


@READERS
@pytest.mark.parametrize("text", ["['a cup', 'cup']", '["a cup", "cup"]', "['a cup' 'cup']"])
def test_a_list_written_as_text_is_several_targets(writer: Writer, text: str, tmp_path: Path) -> None:
    given = writer(tmp_path, [text, "a dog"])
    task = task_of(given)
    assert [sample.targets for sample in task.samples("train")] == [("a cup", "cup"), ("a dog",)]
    assert any("lists written as text" in note for note in task.form("train"))
    assert [sample.targets for sample in task_of(given, parse_lists=False).samples("train")] == [(text,), ("a dog",)]
    assert scored_apart(tmp_path, ["cup"], [text], "exact") == 1  # type: ignore[list-item]


@READERS
def test_a_list_of_something_else_is_refused_by_line(writer: Writer, tmp_path: Path) -> None:
    task = task_of(writer(tmp_path, ["a dog", "['a cup', None]"]))
    with pytest.raises(UserError, match=r"(line|row) [23]: `\w+` is a list written as text that holds more"):
        list(task.samples("train"))


def test_annotators_answers_written_as_text_are_several() -> None:
    row = Record("f, row 1", {"answers": "['yes', 'no']"}, ("answers",))
    assert answers_of(row) == ("yes", "no")
    with pytest.raises(UserError, match="`answers` is a string, not a list"):
        answers_of(row._replace(values={"answers": "yes"}))
