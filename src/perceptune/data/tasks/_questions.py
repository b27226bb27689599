"""Questions on media, with one correct answer or the answers of several annotators."""

import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from perceptune.data.metrics import vqa
from perceptune.data.metrics.base import Scored, normalise, scored_by_group
from perceptune.data.records import Record, first_line, json_type, short
from perceptune.data.tasks._scores import exact_match, require_targets
from perceptune.data.tasks._sets import TRAIN, MediaSet, text_of
from perceptune.errors import UserError
from perceptune.types import Sample

Dialect = Literal["official", "always", "evalai", "epalm"]
# Score of an answer by the number of annotators, of ten, who gave it.
_WORTH = (0.0, 0.3, 0.6, 0.9, 1.0)


class Asked(NamedTuple):
    """A row: a question and its correct answers."""

    record: Record
    id: str
    media: Mapping[str, Path]
    question: str
    answers: tuple[str, ...]  # of all annotators, as in the file; a single one is the correct answer
    label: Mapping[str, float] | None = None  # answer -> score from 0 to 1, if the file has it
    meta: Mapping[str, Any] = MappingProxyType({})


class QuestionSet(MediaSet):
    """Questions scored by VQA accuracy if there are several annotators' answers, else by exact match."""

    class Options(MediaSet.Options):
        """Options of every published set, and those of questions."""

        target: Literal["sampled", "best", "all", "first"] = Field(
            "sampled",
            description="training target: an answer sampled in each epoch by its score, the best-scored one, any, "
            "or the first in the file",
        )
        first_line: bool = Field(True, description="score only the first line of an answer")
        dialect: Dialect | None = Field(
            None,
            description="dialect of VQA accuracy; None = the data set's; `epalm` also scores a single right answer",
        )
        top_answers: int | None = Field(
            None,
            ge=1,
            description="score only questions whose answer is among this many most frequent training answers",
        )

    metric = "accuracy"
    lowercase = True  # generated text is scored in lower case
    dialect: ClassVar[Dialect] = "official"

    @abstractmethod
    def rows(self, split: str) -> Iterator[Asked]:
        """Yield the rows of a split."""

    def question_sample(
        self, row: Record, fields: Mapping[str, object], *answers: str, key: str = "question_id",
        label: Mapping[str, float] | None = None, meta: Mapping[str, Any] = MappingProxyType({}),
    ) -> Asked:  # fmt: skip
        """Convert a row with a `question`; `fields` complete the path of its medium, `key` is that of its id."""
        media = self.medium(row, **fields)
        return Asked(row, text_of(row, key), media, question_of(row), answers, label, meta)

    def entries(self, split: str) -> Iterator[tuple[Record, Sample]]:
        frequent = self._frequent if self._options.top_answers and split != TRAIN else None
        without = 0
        for row in self.rows(split):
            worth = _worth(row)
            if not worth and row.label is not None and split == TRAIN:
                without += 1  # VL-T5's files list only answers among the 3,129 most frequent
                continue
            if not worth and row.label is None and split != "test":
                raise row.record.error("no answer to the question")
            if frequent is not None and next(iter(worth), None) not in frequent:
                continue
            if not any(character.isalnum() for character in row.question):
                raise row.record.error(f"the question holds no text: {short(repr(row.question))}")
            targets = self._targets(row, worth) if split == TRAIN else tuple(worth)
            yield row.record, Sample(row.id, row.media, row.question, targets, self._meta(row))
        if without:
            print(f"{split}: {without} questions have no answer in their `label` and are left out", file=sys.stderr)

    def _meta(self, row: Asked) -> dict[str, Any]:
        meta = {key: value for key, value in row.meta.items() if value is not None}
        if len(row.answers) > 1:
            meta["answers"] = [sys.intern(answer) for answer in row.answers]
        elif row.label is not None and len(row.label) != 1:  # with one answer, the targets suffice
            meta["label"] = dict(row.label)
        return meta

    def _targets(self, row: Asked, worth: Mapping[str, float]) -> tuple[str, ...]:
        match self._options.target:
            case "best":
                return (next(iter(worth)),)
            case "first":
                return (next(answer for answer in (*row.answers, *worth) if answer in worth),)
            case "all":
                return tuple(worth)
        # Repeated in proportion to their scores, so that uniform sampling of targets samples answers by score.
        shares = {answer: max(1, round(value * 100)) for answer, value in worth.items()}
        divisor = math.gcd(*shares.values())
        return tuple(answer for answer, share in shares.items() for _ in range(share // divisor))

    @cached_property
    def _frequent(self) -> set[str]:
        """The most frequent best-scored answers of the training split."""
        counts = Counter(next(iter(worth)) for worth in map(_worth, self.rows(TRAIN)) if worth)
        return {answer for answer, _ in counts.most_common(self._options.top_answers)}

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Compute `accuracy`, and `accuracy_<answer_type>` for each type among the samples."""
        texts, groups = [self.clean(text) for text in predictions], [answer_type(sample) for sample in samples]
        answers = [sample.meta.get("answers") for sample in samples]
        if not any(answers):
            return self.against_targets(texts, samples, groups)
        if not all(answers):
            lacking = samples[next(index for index, found in enumerate(answers) if not found)].id
            raise UserError(f"sample `{lacking}` has no annotators' answers to judge its answer by, and others do")
        return self.against_answers(texts, answers, groups)

    def against_answers(self, texts: Sequence[str], answers: Sequence[Any], groups: Sequence[str]) -> Scored:
        """Score cleaned answers against those of several annotators."""
        options = vqa.Options(dialect=self._options.dialect or self.dialect)
        if self.first_line:
            answers = [[first_line(answer) if "\n" in answer else answer for answer in row] for row in answers]
        return vqa.score(texts, answers, options, groups=groups)

    def against_targets(self, texts: Sequence[str], samples: Sequence[Sample], groups: Sequence[str]) -> Scored:
        """Score cleaned answers against the correct one, or against those that the file gives a score."""
        normalises = self._options.dialect == "epalm"
        if not normalises and not any("label" in sample.meta for sample in samples):
            return exact_match(self, texts, samples)
        form, named = (normalise, {"dialect": "epalm"}) if normalises else (_squeezed, {})
        worth = [self._label_of(sample, form) for sample in samples]
        values = [found.get(form(text), 0.0) for text, found in zip(texts, worth, strict=True)]
        return scored_by_group(values, groups, {"metric": "label", **named})

    def _label_of(self, sample: Sample, form: Callable[[str], str]) -> dict[str, float]:
        label = sample.meta.get("label")
        if label is None:
            require_targets(sample)
            label = dict.fromkeys(sample.targets, 1.0)
        return {form(self.clean(answer)): worth for answer, worth in label.items()}


def answer_type(sample: Sample) -> str:
    """Return the group of questions for which a sample also counts separately; empty if there is none."""
    return str(sample.meta.get("answer_type", ""))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _worth(row: Asked) -> dict[str, float]:
    """Return answer -> score, the best first; equal ones in the order of the file."""
    if row.label:
        found = {answer: float(value) for answer, value in row.label.items() if value > 0}
        return dict(sorted(found.items(), key=lambda item: -item[1]))
    counts = Counter(answer for answer in row.answers if answer.strip())
    single = len(row.answers) == 1
    return {a: 1.0 if single else _WORTH[min(n, 4)] for a, n in counts.most_common()}


def answers_of(record: Record, key: str = "answers", *, needed: bool = False) -> tuple[str, ...]:
    """Return the annotators' answers: strings, or objects with an `answer`. Empty if an optional key is missing."""
    value = record.values.get(key)
    if value is None:
        if needed:
            raise record.lacks([key])
        return ()
    if isinstance(value, str) and (found := record.items(key, value)) != [value]:
        value = found
    if not isinstance(value, list):
        raise record.error(f"`{key}` is {json_type(value)}, not a list of answers")
    return tuple(
        record.check_text(f"{key}[{index}]", row.get("answer") if isinstance(row, dict) else row)
        for index, row in enumerate(value)
    )


def label_of(record: Record, key: str = "label") -> dict[str, float] | None:
    """Return answer -> score from 0 to 1, as in VL-T5's files; None if the key is missing."""
    value = record.values.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise record.error(f"`{key}` is {json_type(value)}, not an object of answers with their worth")
    for answer, worth in value.items():
        if isinstance(worth, bool) or not isinstance(worth, int | float) or not 0 <= worth <= 1:
            raise record.error(f"`{key}`: the worth of `{short(answer)}` is no number from 0 to 1")
    return {record.check_text(key, answer): float(worth) for answer, worth in value.items()}


def question_of(record: Record) -> str:
    """Return the question, at `sent` or `question`."""
    key = "sent" if "sent" in record.values else "question"
    if key not in record.values:
        raise record.lacks(["sent", "question"])
    return record.text(key)
