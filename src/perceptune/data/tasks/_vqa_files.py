"""Two forms of question files that several data sets share: VQA's own, and the one of VL-T5 and eP-ALM."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from perceptune.data.records import Record, json_type, short
from perceptune.data.tasks._rows import json_rows, read_json
from perceptune.data.tasks._sets import text_of
from perceptune.errors import UserError


class Paired(NamedTuple):
    """A question of VQA's form with its annotation."""

    question: Record
    annotation: Record | None  # None where there is no file of annotations
    document: dict[str, Any]  # what the file of questions says of all of them


def vqa_rows(paths: Sequence[Path]) -> Iterator[Paired]:
    """Questions, in their order, joined to annotations by `question_id`.

    `paths` are a file of questions and, unless answers are hidden, one of annotations, in any order.
    """
    documents = [(path, read_json(path)) for path in paths]
    questions = [pair for pair in documents if isinstance(pair[1], dict) and "questions" in pair[1]]
    annotations = [pair for pair in documents if isinstance(pair[1], dict) and "annotations" in pair[1]]
    if not questions:
        raise UserError(f"{paths[0]}: no key `questions`; a split is a file of questions and one of annotations")
    found: dict[str, Record] = {}
    for path, document in annotations:
        for row in json_rows(document, path, at="annotations"):
            name = text_of(row, "question_id")
            if found.setdefault(name, row) is not row:
                raise row.error(f"the question_id `{short(name)}` is that of {found[name].where}, too")
    for path, document in questions:
        for row in json_rows(document, path, at="questions"):
            name = text_of(row, "question_id")
            if annotations and name not in found:
                raise row.error(f"question_id `{short(name)}` is not among the annotations in {annotations[0][0]}")
            yield Paired(row, found.get(name), document)


def answers_of(record: Record, key: str = "answers", *, needed: bool = False) -> tuple[str, ...]:
    """The annotators' answers: strings, or objects with an `answer`; none where the key may be missing and is."""
    value = record.values.get(key)
    if value is None:
        if needed:
            raise record.lacks([key])
        return ()
    if isinstance(value, str) and (found := record.items(key, value)) != [value]:
        value = found
    if not isinstance(value, list):
        raise record.error(f"`{key}` is {json_type(value)}, not a list of answers")
    return tuple(
        record.check_text(f"{key}[{index}]", row.get("answer") if isinstance(row, dict) else row)
        for index, row in enumerate(value)
    )


def label_of(record: Record, key: str = "label") -> dict[str, float] | None:
    """Answer -> its worth from 0 to 1, as VL-T5's files have it; None where the key is not there."""
    value = record.values.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise record.error(f"`{key}` is {json_type(value)}, not an object of answers with their worth")
    for answer, worth in value.items():
        if isinstance(worth, bool) or not isinstance(worth, int | float) or not 0 <= worth <= 1:
            raise record.error(f"`{key}`: the worth of `{short(answer)}` is no number from 0 to 1")
    return {record.check_text(key, answer): float(worth) for answer, worth in value.items()}


def question_of(record: Record) -> str:
    """The question, called `sent` or `question`."""
    key = "sent" if "sent" in record.values else "question"
    if key not in record.values:
        raise record.lacks(["sent", "question"])
    return record.text(key)
