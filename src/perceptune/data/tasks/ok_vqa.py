"""OK-VQA (Marino et al., 2019): questions on COCO's images that need knowledge from elsewhere.

    official   OpenEnded_mscoco_train2014_questions.json, mscoco_train2014_annotations.json, the same of val2014
    lavis      okvqa_train.json, okvqa_val.json, as LAVIS and PETAL have them

Images are `val2014/COCO_val2014_000000297147.jpg`. Five annotators' answers stand twice in the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from perceptune.data.tasks.base import (
    Asked,
    QuestionSet,
    answers_of,
    json_rows,
    number_of,
    question_of,
    read_json,
    text_of,
    vqa_rows,
)


class OKVQA(QuestionSet):
    """Judged by VQA accuracy, in the dialect of EvalAI's evaluation."""

    class Options(QuestionSet.Options):
        """Those of every set of questions, and whose files they are."""

        format: Literal["official", "lavis"] = Field("official", description="source of the annotation files")

    template = ""  # by format
    dialect = "evalai"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        published = "{subset}/{name}.jpg" if options.format == "official" else "{image}"
        self._template = options.template or published

    def published(self) -> dict[str, tuple[str, ...]]:
        if self._options.format == "lavis":
            return {"train": ("okvqa_train.json",), "validation": ("okvqa_val.json",)}
        return {
            split: (f"OpenEnded_mscoco_{subset}_questions.json", f"mscoco_{subset}_annotations.json")
            for split, subset in (("train", "train2014"), ("validation", "val2014"))
        }

    def rows(self, split: str) -> Iterator[Asked]:
        return self._official(split) if self._options.format == "official" else self._lavis(split)

    def _official(self, split: str) -> Iterator[Asked]:
        for question, annotation, document in vqa_rows(self.annotations(split)):
            subset, number = str(document.get("data_subtype", "")), number_of(question, "image_id")
            yield Asked(
                question,
                text_of(question, "question_id"),
                self.medium(question, subset=subset, name=f"COCO_{subset}_{number:012d}", image_id=number),
                question_of(question),
                () if annotation is None else answers_of(annotation, needed=True),
                None,
                {"question_type": None if annotation is None else annotation.values.get("question_type")},
            )

    def _lavis(self, split: str) -> Iterator[Asked]:
        for path in self.annotations(split):
            for row in json_rows(read_json(path), path):
                media = self.medium(row, image=text_of(row, "image"))
                yield Asked(
                    row, text_of(row, "question_id"), media, question_of(row), answers_of(row, "answer"), None, {}
                )


TASK = OKVQA
