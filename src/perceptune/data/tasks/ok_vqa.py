"""OK-VQA (Marino et al., 2019): questions on COCO's images that need knowledge from elsewhere.

    official   OpenEnded_mscoco_train2014_questions.json, mscoco_train2014_annotations.json, the same of val2014
    lavis      okvqa_train.json, okvqa_val.json, as LAVIS and PETAL have them

Images are `val2014/COCO_val2014_000000297147.jpg`. Five annotators' answers stand twice in the files.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.tasks.base import Asked, QuestionSet, answers_of, number_of, question_of, text_of, vqa_rows


class OKVQA(QuestionSet):
    """Judged by VQA accuracy, in the dialect of EvalAI's evaluation."""

    class Options(QuestionSet.Options):
        """Those of every set of questions, and whose files they are."""

        format: Literal["official", "lavis"] = Field("official", description="source of the annotation files")

    template: ClassVar = {"official": "{subset}/{name}.jpg", "lavis": "{image}"}
    dialect = "evalai"

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
            media = self.medium(question, subset=subset, name=f"COCO_{subset}_{number:012d}", image_id=number)
            answers = () if annotation is None else answers_of(annotation, needed=True)
            meta = {} if annotation is None else {"question_type": annotation.values.get("question_type")}
            yield Asked(question, text_of(question, "question_id"), media, question_of(question), answers, meta=meta)

    def _lavis(self, split: str) -> Iterator[Asked]:
        for row in self.json_rows(split):
            media = self.medium(row, image=text_of(row, "image"))
            yield Asked(row, text_of(row, "question_id"), media, question_of(row), answers_of(row, "answer"))


TASK = OKVQA
