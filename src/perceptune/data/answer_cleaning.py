"""Extraction of the answer from a generated text. The rule is stored with a run, so answering needs no data set."""

from dataclasses import dataclass

from perceptune.data.records import first_line


@dataclass(frozen=True)
class AnswerCleaning:
    """A callable that strips surrounding whitespace and, unless `keeps_period`, the final period."""

    lowercase: bool = False
    first_line: bool = False  # whether the answer ends with the first line
    keeps_period: bool = False

    def __call__(self, text: str) -> str:
        answer = first_line(text).rstrip() if self.first_line else text.strip()
        while not self.keeps_period and answer.endswith("."):
            answer = answer.rstrip(".").rstrip()
        return answer.lower() if self.lowercase else answer


AS_WRITTEN = AnswerCleaning(keeps_period=True)  # for recipes without a task
