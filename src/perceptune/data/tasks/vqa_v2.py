"""VQA v2 (Goyal et al., 2017): questions on COCO's images, ten annotators' answers each.

    official   v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, the same of val2014
    vl-t5      karpathy_train.json, karpathy_val.json, karpathy_test.json (Karpathy's split, in VL-T5's form)

Images are `train2014/COCO_train2014_000000458752.jpg`. The official test questions, whose answers are hidden, are a
split of their own when named: `annotations: {test: v2_OpenEnded_mscoco_test2015_questions.json}`.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.tasks.base import Asked, VQAFiles, answers_of, files_of, label_of, text_of


class VQAv2(VQAFiles):
    """VQA v2, scored by VQA accuracy in the official evaluation's dialect."""

    class Options(VQAFiles.Options):
        """Options of every set of questions, and the format of the files."""

        format: Literal["official", "vl-t5"] = Field("official", description="source of the annotation files")

    files: ClassVar = {
        "official": files_of("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json",
                             train="train2014", validation="val2014"),
        "vl-t5": files_of("karpathy_{}.json", train="train", validation="val", test="test"),
    }  # fmt: skip
    template = "{subset}/{name}.jpg"
    annotated = ("question_type", "answer_type")

    def rows(self, split: str) -> Iterator[Asked]:
        return self.official(split) if self._options.format == "official" else self._vl_t5(split)

    def _vl_t5(self, split: str) -> Iterator[Asked]:
        for row in self.json_rows(split):
            name = text_of(row, "img_id")
            subset, number = name.split("_")[-2:] if name.count("_") >= 2 else ("", name)
            fields = {"subset": subset, "name": name, "image_id": number}
            meta = {key: row.values.get(key) for key in self.annotated}
            yield self.question_sample(row, fields, *answers_of(row), label=label_of(row), meta=meta)


TASK = VQAv2
