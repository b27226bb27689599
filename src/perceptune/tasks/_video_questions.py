"""What MSRVTT-QA and MSVD-QA share: the rows their authors publish, and those of the eP-ALM and VL-T5 files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from perceptune.records import Record, json_type
from perceptune.tasks._questions import Asked, QuestionSet
from perceptune.tasks._rows import json_rows, read_json
from perceptune.tasks._sets import text_of

_KEYS = ("id", "question_id", "question", "sent", "answer", "label", "video", "video_id")


class VideoQuestions(QuestionSet):
    """Questions about clips, each with one right answer.

    Published are lists of `{"id", "question", "answer", "video_id"}`; the eP-ALM files hold
    `{"question_id", "question" or "sent", "label": {answer: worth}, "video": file}`.
    """

    modality = "video"
    files: ClassVar = {"train": ("train_qa.json",), "validation": ("val_qa.json",), "test": ("test_qa.json",)}

    def video(self, record: Record, number: str) -> str:
        """The file of a clip by its number."""
        raise NotImplementedError

    def rows(self, split: str) -> Iterator[Asked]:
        for path in self.annotations(split):
            for record in json_rows(read_json(path), path, _KEYS):
                yield self._asked(record, split)

    def _asked(self, record: Record, split: str) -> Asked:
        if record.values.get("video") is not None:
            number, video = "", text_of(record, "video")
        else:
            number = text_of(record, "video_id")
            video = self.video(record, number)
        answers, label = (), None
        if record.values.get("label") is not None:
            label = _label(record)
        elif split != "test" or record.values.get("answer") is not None:
            answers = (text_of(record, "answer"),)
        return Asked(
            record=record,
            id=text_of(record, "id" if record.values.get("id") is not None else "question_id"),
            media=self.medium(record, video=video, video_id=number),
            question=text_of(record, "sent" if record.values.get("sent") is not None else "question"),
            answers=answers,
            label=label,
            meta=record.meta(),
        )


def _label(record: Record) -> dict[str, float]:
    label = record.values["label"]
    if not isinstance(label, dict):
        raise record.error(f"`label` is {json_type(label)}, not an object of answers")
    for answer, worth in label.items():
        if isinstance(worth, bool) or not isinstance(worth, int | float) or not 0 <= worth <= 1:
            raise record.error(f"`label`: `{answer}` is worth {worth!r}, not a number between 0 and 1")
    return {record.check_text("label", answer): float(worth) for answer, worth in label.items()}
