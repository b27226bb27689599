"""What MSRVTT-QA and MSVD-QA share: the rows their authors publish, and those of the eP-ALM and VL-T5 files."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from perceptune.data.records import Record
from perceptune.data.tasks._questions import Asked, QuestionSet
from perceptune.data.tasks._sets import text_of
from perceptune.data.tasks._vqa_files import label_of, question_of

_KEYS = ("id", "question_id", "question", "sent", "answer", "label", "video", "video_id")


class VideoQuestions(QuestionSet):
    """Questions about videos, each with one right answer.

    Published are lists of `{"id", "question", "answer", "video_id"}`; the eP-ALM files hold
    `{"question_id", "question" or "sent", "label": {answer: worth}, "video": file}`.
    """

    modality = "video"
    files: ClassVar = {"train": ("train_qa.json",), "validation": ("val_qa.json",), "test": ("test_qa.json",)}

    @abstractmethod
    def video(self, record: Record, number: str) -> str:
        """The file of a video by its number."""

    def rows(self, split: str) -> Iterator[Asked]:
        for record in self.json_rows(split, _KEYS):
            yield self._asked(record, split)

    def _asked(self, record: Record, split: str) -> Asked:
        if record.values.get("video") is None:
            number = text_of(record, "video_id")
            video = self.video(record, number)
        else:
            number, video = "", text_of(record, "video")
        label = label_of(record)
        hidden = label is not None or (split == "test" and record.values.get("answer") is None)
        name = text_of(record, "id" if record.values.get("id") is not None else "question_id")
        media = self.medium(record, video=video, video_id=number)
        answers = () if hidden else (text_of(record, "answer"),)
        return Asked(record, name, media, question_of(record), answers, label, record.meta())
