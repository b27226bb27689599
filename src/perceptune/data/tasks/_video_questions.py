"""The base class of MSRVTT-QA and MSVD-QA: published rows, and those of the eP-ALM and VL-T5 files."""

from abc import abstractmethod
from collections.abc import Iterator

from perceptune.data.records import Record
from perceptune.data.tasks._questions import Asked, QuestionSet, label_of
from perceptune.data.tasks._sets import files_of, text_of

_KEYS = ("id", "question_id", "question", "sent", "answer", "label", "video", "video_id")


class VideoQuestions(QuestionSet):
    """Questions about videos, each with one correct answer.

    Published files are lists of `{"id", "question", "answer", "video_id"}`; the eP-ALM files contain
    `{"question_id", "question" or "sent", "label": {answer: score}, "video": file}`.
    """

    modality = "video"
    files = files_of("{}_qa.json", train="train", validation="val", test="test")

    @abstractmethod
    def video(self, record: Record, number: str) -> str:
        """Return the file of a video by its number."""

    def rows(self, split: str) -> Iterator[Asked]:
        for record in self.json_rows(split, _KEYS):
            if record.values.get("video") is None:
                number = text_of(record, "video_id")
                video = self.video(record, number)
            else:
                number, video = "", text_of(record, "video")
            label = label_of(record)
            hidden = label is not None or (split == "test" and record.values.get("answer") is None)
            answers = () if hidden else (text_of(record, "answer"),)
            key = "id" if record.values.get("id") is not None else "question_id"
            fields = {"video": video, "video_id": number}
            yield self.question_sample(record, fields, *answers, key=key, label=label, meta=record.meta())
