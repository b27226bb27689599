"""A-OKVQA (Schwenk et al., 2022): questions that need knowledge and reasoning, with four choices and ten answers.

`aokvqa_v1p0_train.json`, `aokvqa_v1p0_val.json`; images are COCO's of 2017, `val2017/000000299207.jpg`. The answers
of the test questions are hidden: `annotations: {test: aokvqa_v1p0_test.json}` reads them all the same.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from perceptune.data.metrics import a_okvqa, choice
from perceptune.data.metrics.base import Scored
from perceptune.data.records import Record, json_type
from perceptune.data.tasks.base import Asked, QuestionSet, answers_of, files_of, number_of
from perceptune.types import Sample

_SUBSETS = {"validation": "val2017"}


class AOKVQA(QuestionSet):
    """Direct answers, scored as by the authors, or multiple choice, with the four choices in the prompt."""

    class Options(QuestionSet.Options):
        """Options of every set of questions, and the choice between the two tasks."""

        answers: Literal["direct", "choice"] = Field("direct", description="free answers, or one of four choices")
        choices: str = Field("{question} Choices: {choices}.", description="prompt template for `answers: choice`")

    files = files_of("aokvqa_v1p0_{}.json", train="train", validation="val")
    template = "{subset}/{image_id:012d}.jpg"

    def rows(self, split: str) -> Iterator[Asked]:
        direct, subset = self._options.answers == "direct", _SUBSETS.get(split, f"{split}2017")
        for row in self.json_rows(split):
            # The official evaluation skips questions on which all ten annotators disagree.
            if split != "train" and direct and row.values.get("difficult_direct_answer"):
                continue
            fields = {"subset": subset, "image_id": number_of(row, "image_id")}
            if direct:
                yield self.question_sample(row, fields, *answers_of(row, "direct_answers"))
            else:
                yield self._choice(row, fields)

    def _choice(self, row: Record, fields: dict[str, object]) -> Asked:
        choices = answers_of(row, "choices")
        if not choices:
            raise row.lacks(["choices"])
        right = row.values.get("correct_choice_idx")
        if right is not None and (not isinstance(right, int) or not 0 <= right < len(choices)):
            raise row.error(f"`correct_choice_idx` is {json_type(right)} that names none of {len(choices)} choices")
        answers = () if right is None else (choices[right],)
        found = self.question_sample(row, fields, *answers, meta={"choices": list(choices)})
        prompt = self._options.choices.format(question=found.question, choices=", ".join(choices))
        return found._replace(question=prompt)

    def against_answers(self, texts: Sequence[str], answers: Sequence[Any], groups: Sequence[str]) -> Scored:
        """Score answers by min(matches / 3, 1), compared as by the authors, without further normalisation."""
        return a_okvqa.score(texts, answers, groups=groups)

    def against_targets(self, texts: Sequence[str], samples: Sequence[Sample], groups: Sequence[str]) -> Scored:
        """Compute the fraction of correct choices, and `no_choice`: that of answers that name no choice."""
        choices = [sample.meta.get("choices", ()) for sample in samples]
        targets = [sample.targets for sample in samples]
        return choice.score(texts, targets, choices=choices, groups=groups)


TASK = AOKVQA
