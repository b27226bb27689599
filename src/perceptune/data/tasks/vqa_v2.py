"""VQA v2 (Goyal et al., 2017): questions on COCO's images, ten annotators' answers each.

    official   v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, the same of val2014
    vl-t5      karpathy_train.json, karpathy_val.json, karpathy_test.json (Karpathy's split, in VL-T5's form)

Images are `train2014/COCO_train2014_000000458752.jpg`. The official test questions, whose answers are hidden, are a
split of their own when named: `annotations: {test: v2_OpenEnded_mscoco_test2015_questions.json}`.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from perceptune.data.tasks.base import (
    Asked,
    QuestionSet,
    answers_of,
    label_of,
    number_of,
    question_of,
    text_of,
    vqa_rows,
)

_OFFICIAL = {
    split: (f"v2_OpenEnded_mscoco_{subset}_questions.json", f"v2_mscoco_{subset}_annotations.json")
    for split, subset in (("train", "train2014"), ("validation", "val2014"))
}
_VL_T5 = {"train": ("karpathy_train.json",), "validation": ("karpathy_val.json",), "test": ("karpathy_test.json",)}


class VQAv2(QuestionSet):
    """Judged by VQA accuracy, in the official evaluation's dialect."""

    class Options(QuestionSet.Options):
        """Those of every set of questions, and whose files they are."""

        format: Literal["official", "vl-t5"] = Field("official", description="source of the annotation files")

    template = "{subset}/{name}.jpg"

    def published(self) -> dict[str, tuple[str, ...]]:
        return dict(_OFFICIAL if self._options.format == "official" else _VL_T5)

    def rows(self, split: str) -> Iterator[Asked]:
        return self._official(split) if self._options.format == "official" else self._vl_t5(split)

    def _official(self, split: str) -> Iterator[Asked]:
        for question, annotation, document in vqa_rows(self.annotations(split)):
            subset, number = str(document.get("data_subtype", "")), number_of(question, "image_id")
            said = {} if annotation is None else annotation.values
            media = self.medium(question, subset=subset, name=f"COCO_{subset}_{number:012d}", image_id=number)
            answers = () if annotation is None else answers_of(annotation, needed=True)
            meta = {key: said.get(key) for key in ("question_type", "answer_type")}
            yield Asked(question, text_of(question, "question_id"), media, question_of(question), answers, meta=meta)

    def _vl_t5(self, split: str) -> Iterator[Asked]:
        for row in self.json_rows(split):
            name = text_of(row, "img_id")
            subset, number = name.split("_")[-2:] if name.count("_") >= 2 else ("", name)
            media = self.medium(row, subset=subset, name=name, image_id=number)
            meta = {key: row.values.get(key) for key in ("question_type", "answer_type")}
            asked = text_of(row, "question_id"), media, question_of(row), answers_of(row), label_of(row), meta
            yield Asked(row, *asked)


TASK = VQAv2
