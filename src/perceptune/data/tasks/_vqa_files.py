"""VQA's own format: a file of questions on COCO's images, and one with the annotators' answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from perceptune.data.records import Record, short
from perceptune.data.tasks._questions import Asked, QuestionSet, answers_of
from perceptune.data.tasks._rows import json_rows, read_json
from perceptune.data.tasks._sets import number_of, text_of
from perceptune.errors import UserError


class VQAFiles(QuestionSet):
    """Questions that are also published in VQA's own format."""

    annotated: ClassVar[tuple[str, ...]]  # keys of an annotation that describe its question

    def official(self, split: str) -> Iterator[Asked]:
        """Yield the rows of a split in VQA's own format."""
        for question, annotation, document in _joined(self.annotations(split)):
            subset, number = str(document.get("data_subtype", "")), number_of(question, "image_id")
            answers = () if annotation is None else answers_of(annotation, needed=True)
            meta = {} if annotation is None else {key: annotation.values.get(key) for key in self.annotated}
            fields = {"subset": subset, "name": f"COCO_{subset}_{number:012d}", "image_id": number}
            yield self.question_sample(question, fields, *answers, meta=meta)


def _joined(paths: Sequence[Path]) -> Iterator[tuple[Record, Record | None, dict[str, Any]]]:
    """Yield questions in their order with their annotations, joined by `question_id`, and the file's common keys.

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
            yield row, found.get(name), document
