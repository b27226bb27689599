"""OK-VQA (Marino et al., 2019): questions on COCO's images that need knowledge from elsewhere.

    official   OpenEnded_mscoco_train2014_questions.json, mscoco_train2014_annotations.json, the same of val2014
    lavis      okvqa_train.json, okvqa_val.json, as LAVIS and PETAL have them

Images are `val2014/COCO_val2014_000000297147.jpg`. Answers of five annotators occur twice in the files.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.tasks.base import Asked, VQAFiles, answers_of, files_of, text_of


class OKVQA(VQAFiles):
    """OK-VQA, scored by VQA accuracy in the dialect of EvalAI's evaluation."""

    class Options(VQAFiles.Options):
        """Options of every set of questions, and the format of the files."""

        format: Literal["official", "lavis"] = Field("official", description="source of the annotation files")

    files: ClassVar = {
        "official": files_of("OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json",
                             train="train2014", validation="val2014"),
        "lavis": files_of("okvqa_{}.json", train="train", validation="val"),
    }  # fmt: skip
    template: ClassVar = {"official": "{subset}/{name}.jpg", "lavis": "{image}"}
    dialect = "evalai"
    annotated = ("question_type",)

    def rows(self, split: str) -> Iterator[Asked]:
        return self.official(split) if self._options.format == "official" else self._lavis(split)

    def _lavis(self, split: str) -> Iterator[Asked]:
        for row in self.json_rows(split):
            yield self.question_sample(row, {"image": text_of(row, "image")}, *answers_of(row, "answer"))


TASK = OKVQA
