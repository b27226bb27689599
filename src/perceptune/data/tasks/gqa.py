"""GQA (Hudson and Manning, 2019): questions made from scene graphs, one answer each.

    official   train_balanced_questions.json, val_balanced_questions.json, testdev_balanced_questions.json
    vl-t5      train.json, valid.json, testdev.json, as VL-T5 and eP-ALM have them

Images are `images/2405722.jpg`; those of training and validation are Visual Genome's. All questions instead of the
balanced ones are named by `annotations`, several files a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from perceptune.data.metrics import gqa
from perceptune.data.metrics.base import Scored
from perceptune.data.records import Record
from perceptune.data.tasks.base import Asked, QuestionSet, json_rows, label_of, question_of, read_json, text_of
from perceptune.types import Sample


class GQA(QuestionSet):
    """Judged by exact match, together and for each structural type of question."""

    class Options(QuestionSet.Options):
        """Those of every set of questions, and whose files they are."""

        format: Literal["official", "vl-t5"] = Field("official", description="source of the annotation files")

    template = "images/{image_id}.jpg"

    def published(self) -> dict[str, tuple[str, ...]]:
        if self._options.format == "vl-t5":
            return {"train": ("train.json",), "validation": ("valid.json",), "testdev": ("testdev.json",)}
        names = {"train": "train", "validation": "val", "testdev": "testdev"}
        return {split: (f"{name}_balanced_questions.json",) for split, name in names.items()}

    def rows(self, split: str) -> Iterator[Asked]:
        make = self._official if self._options.format == "official" else self._vl_t5
        for path in self.annotations(split):
            for row in json_rows(read_json(path), path):
                yield make(row)

    def against_targets(self, texts: Sequence[str], samples: Sequence[Sample], groups: Sequence[str]) -> Scored:
        if any("label" in sample.meta for sample in samples):
            return super().against_targets(texts, samples, groups)
        options = gqa.Options(dialect="epalm" if self._options.dialect == "epalm" else "official")
        return gqa.score(texts, [sample.targets for sample in samples], options, groups=groups)

    def _official(self, row: Record) -> Asked:
        answer, types = row.values.get("answer"), row.values.get("types")
        structural = types.get("structural") if isinstance(types, dict) else None
        return Asked(
            record=row,
            id=text_of(row, "id"),
            media=self.medium(row, image_id=text_of(row, "imageId")),
            question=question_of(row),
            answers=() if answer is None else (row.check_text("answer", answer),),
            label=None,
            meta=_type(row, structural),
        )

    def _vl_t5(self, row: Record) -> Asked:
        return Asked(
            record=row,
            id=text_of(row, "question_id"),
            media=self.medium(row, image_id=text_of(row, "img_id")),
            question=question_of(row),
            answers=(),
            label=label_of(row),
            meta={},
        )


def _type(row: Record, structural: Any) -> dict[str, Any]:
    return {} if structural is None else {"answer_type": row.check_text("types.structural", structural)}


TASK = GQA
