"""DAQUAR (Malinowski and Fritz, 2014): questions on indoor images (NYU Depth v2); answers are words or lists of them.

    text   qa.37.raw.train.txt, qa.37.raw.test.txt: a line with the question, which names its image, a line with the
           answer; all 894 kinds of answers are `annotations: {train: qa.894.raw.train.txt, ...}`
    csv    data_train.csv, data_eval.csv (`question,answer,image_id`)

Images are `images/image3.png`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.records import Record, short
from perceptune.data.tasks.base import Asked, QuestionSet, files_of, table_rows, text_lines, text_of
from perceptune.errors import UserError

# "what is behind the table in the image3 ?": the image's name is removed from the question.
_NAMED = re.compile(r"(?P<question>.*?)\s*(?:\bin\s+)?(?:\bthe\s+)?\b(?P<image>image\d+)\s*\?\s*")


class DAQUAR(QuestionSet):
    """DAQUAR, scored by exact match; a list of objects is one answer."""

    class Options(QuestionSet.Options):
        """Options of every set of questions, and the format of the files."""

        format: Literal["text", "csv"] = Field("text", description="format of the annotation files")

    files: ClassVar = {
        "text": files_of("qa.37.raw.{}.txt", train="train", test="test"),
        "csv": files_of("data_{}.csv", train="train", test="eval"),
    }
    template = "images/{image_id}.png"

    def rows(self, split: str) -> Iterator[Asked]:
        read = _csv if self._options.format == "csv" else _text
        for path in self.annotations(split):
            for index, (record, question, answer, image) in enumerate(read(path)):
                media = self.medium(record, image_id=image)
                yield Asked(record, f"{path.stem}-{index:06d}", media, question, (answer,))


TASK = DAQUAR


def _csv(path: Path) -> Iterator[tuple[Record, str, str, str]]:
    for row in table_rows(path):
        yield row, text_of(row, "question"), text_of(row, "answer"), text_of(row, "image_id")


def _text(path: Path) -> Iterator[tuple[Record, str, str, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text_lines(path), 1) if line.strip()]
    if len(lines) % 2:
        raise UserError(f"{path}, line {lines[-1][0]}: a question without an answer: {short(lines[-1][1])}")
    for (number, question), (_, answer) in zip(lines[::2], lines[1::2], strict=True):
        record = Record(f"{path}, line {number}", {"question": question, "answer": answer}, ("question", "answer"))
        match = _NAMED.fullmatch(question)
        if match is None:
            raise record.error(f"no question that ends in its image's name, such as `image3 ?`: {short(question)}")
        yield record, f"{match['question']}?", answer, match["image"]
