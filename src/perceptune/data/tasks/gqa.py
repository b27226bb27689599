"""GQA (Hudson and Manning, 2019): questions made from scene graphs, one answer each.

    official   train_balanced_questions.json, val_balanced_questions.json, testdev_balanced_questions.json
    vl-t5      train.json, valid.json, testdev.json, as VL-T5 and eP-ALM have them

Images are `images/2405722.jpg`; those of training and validation are Visual Genome's. All questions instead of the
balanced ones are named by `annotations`, several files a split.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.metrics import gqa
from perceptune.data.metrics.base import Scored
from perceptune.data.records import Record
from perceptune.data.tasks.base import Asked, QuestionSet, files_of, label_of, text_of
from perceptune.types import Sample


class GQA(QuestionSet):
    """GQA, scored by exact match over all questions and for each structural type."""

    class Options(QuestionSet.Options):
        """Options of every set of questions, and the format of the files."""

        format: Literal["official", "vl-t5"] = Field("official", description="source of the annotation files")

    files: ClassVar = {
        "official": files_of("{}_balanced_questions.json", train="train", validation="val", testdev="testdev"),
        "vl-t5": files_of("{}.json", train="train", validation="valid", testdev="testdev"),
    }
    template: ClassVar = "images/{image_id}.jpg"

    def rows(self, split: str) -> Iterator[Asked]:
        make = self._official if self._options.format == "official" else self._vl_t5
        yield from map(make, self.json_rows(split))

    def against_targets(self, texts: Sequence[str], samples: Sequence[Sample], groups: Sequence[str]) -> Scored:
        if any("label" in sample.meta for sample in samples):
            return super().against_targets(texts, samples, groups)
        options = gqa.Options(dialect="epalm" if self._options.dialect == "epalm" else "official")
        return gqa.score(texts, [sample.targets for sample in samples], options, groups=groups)

    def _official(self, row: Record) -> Asked:
        answer, types = row.values.get("answer"), row.values.get("types")
        structural = types.get("structural") if isinstance(types, dict) else None
        answers = () if answer is None else (row.check_text("answer", answer),)
        meta = {} if structural is None else {"answer_type": row.check_text("types.structural", structural)}
        return self.question_sample(row, {"image_id": text_of(row, "imageId")}, *answers, key="id", meta=meta)

    def _vl_t5(self, row: Record) -> Asked:
        return self.question_sample(row, {"image_id": text_of(row, "img_id")}, label=label_of(row))


TASK = GQA
