"""Questions on media, with one right answer or the answers of several annotators."""

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
from perceptune.data.tasks._sets import TRAIN, MediaSet, text_of
from perceptune.data.tasks._task import exact_match, require_targets
from perceptune.errors import UserError
from perceptune.types import Sample

Dialect = Literal["official", "always", "evalai", "epalm"]
# What an answer is worth that so many of ten annotators gave.
_WORTH = (0.0, 0.3, 0.6, 0.9, 1.0)


class Asked(NamedTuple):
    """What a row says: a question, and what is right."""

    record: Record
    id: str
    media: Mapping[str, Path]
    question: str
    answers: tuple[str, ...]  # of all annotators, as they stand in the file; a single one is simply right
    label: Mapping[str, float] | None = None  # answer -> its worth, 0 to 1, where the file says so
    meta: Mapping[str, Any] = MappingProxyType({})


class QuestionSet(MediaSet):
    """Judged by VQA accuracy where there are several annotators' answers, else by exact match."""

    class Options(MediaSet.Options):
        """Those of every published set, and what its questions add."""

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
    lowercase = True  # generated text is judged in lower case
    dialect: ClassVar[Dialect] = "official"

    @abstractmethod
    def rows(self, split: str) -> Iterator[Asked]:
        """The rows of a split."""

    def question_sample(
        self, row: Record, fields: Mapping[str, object], *answers: str, key: str = "question_id",
        label: Mapping[str, float] | None = None, meta: Mapping[str, Any] = MappingProxyType({}),
    ) -> Asked:  # fmt: skip
        """What a row with a `question` says; `fields` fill in the path of its medium, at `key` is its id."""
        media = self.medium(row, **fields)
        return Asked(row, text_of(row, key), media, question_of(row), answers, label, meta)

    def entries(self, split: str) -> Iterator[tuple[Record, Sample]]:
        frequent = self._frequent if self._options.top_answers and split != TRAIN else None
        without = 0
        for row in self.rows(split):
            worth = _worth(row)
            if not worth and row.label is not None and split == TRAIN:
                without += 1  # VL-T5's files list answers among the commonest 3,129 only
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
        elif row.label is not None and len(row.label) != 1:  # one answer is simply right
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
        # Repeated as often as they are to be drawn, so that drawing any target alike draws them by their worth.
        shares = {answer: max(1, round(value * 100)) for answer, value in worth.items()}
        divisor = math.gcd(*shares.values())
        return tuple(answer for answer, share in shares.items() for _ in range(share // divisor))

    @cached_property
    def _frequent(self) -> set[str]:
        """The training split's most frequent best answers."""
        counts = Counter(next(iter(worth)) for worth in map(_worth, self.rows(TRAIN)) if worth)
        return {answer for answer, _ in counts.most_common(self._options.top_answers)}

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """`accuracy`, and `accuracy_<answer_type>` for each type among the samples."""
        texts, groups = [self.clean(text) for text in predictions], [answer_type(sample) for sample in samples]
        answers = [sample.meta.get("answers") for sample in samples]
        if not any(answers):
            return self.against_targets(texts, samples, groups)
        if not all(answers):
            lacking = samples[next(index for index, found in enumerate(answers) if not found)].id
            raise UserError(f"sample `{lacking}` has no annotators' answers to judge its answer by, and others do")
        return self.against_answers(texts, answers, groups)

    def against_answers(self, texts: Sequence[str], answers: Sequence[Any], groups: Sequence[str]) -> Scored:
        """Cleaned answers against those of several annotators."""
        options = vqa.Options(dialect=self._options.dialect or self.dialect)
        if self.first_line:
            answers = [[first_line(answer) if "\n" in answer else answer for answer in row] for row in answers]
        return vqa.score(texts, answers, options, groups=groups)

    def against_targets(self, texts: Sequence[str], samples: Sequence[Sample], groups: Sequence[str]) -> Scored:
        """Cleaned answers against the right one, or against the several that the file gives a worth."""
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
    """The group of questions among which a sample is judged by itself; most often there is none."""
    return str(sample.meta.get("answer_type", ""))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _worth(row: Asked) -> dict[str, float]:
    """Answer -> its worth, the best first; of equal ones the one that comes first in the file."""
    if row.label:
        found = {answer: float(value) for answer, value in row.label.items() if value > 0}
        return dict(sorted(found.items(), key=lambda item: -item[1]))
    counts = Counter(answer for answer in row.answers if answer.strip())
    single = len(row.answers) == 1
    return {a: 1.0 if single else _WORTH[min(n, 4)] for a, n in counts.most_common()}


def answers_of(record: Record, key: str = "answers", *, needed: bool = False) -> tuple[str, ...]:
    """The annotators' answers: strings, or objects with an `answer`; none where the key may be missing and is."""
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
    """Answer -> its worth from 0 to 1, as VL-T5's files have it; None where the key is not there."""
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
    """The question, called `sent` or `question`."""
    key = "sent" if "sent" in record.values else "question"
    if key not in record.values:
        raise record.lacks(["sent", "question"])
    return record.text(key)
