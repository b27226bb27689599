"""TextVQA (Singh et al., 2019): questions on text in images, ten annotators' answers each.

`TextVQA_0.5.1_train.json`, `TextVQA_0.5.1_val.json`; images are `train_images/0a0bc91825468c45.jpg`, those of
validation, too. The test questions are `annotations: {test: TextVQA_0.5.1_test.json}`, in `test_images`.
"""

from collections.abc import Iterator

from perceptune.data.tasks.base import Asked, QuestionSet, answers_of, files_of, text_of


class TextVQA(QuestionSet):
    """TextVQA, scored by VQA accuracy in the dialect of EvalAI's evaluation."""

    files = files_of("TextVQA_0.5.1_{}.json", train="train", validation="val")
    template = "{folder}/{image_id}.jpg"
    dialect = "evalai"

    def rows(self, split: str) -> Iterator[Asked]:
        folder = "test_images" if split == "test" else "train_images"
        for row in self.json_rows(split, at="data"):
            yield self.question_sample(row, {"folder": folder, "image_id": text_of(row, "image_id")}, *answers_of(row))


TASK = TextVQA
