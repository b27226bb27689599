"""Questions on media, with one right answer or the answers of several annotators."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from perceptune.errors import UserError
from perceptune.metrics import exact
from perceptune.metrics.base import Scored
from perceptune.plugins import leaf
from perceptune.records import Record, short
from perceptune.tasks._sets import TRAIN, MediaSet
from perceptune.types import Sample

Dialect = Literal["official", "always", "evalai"]
# What an answer is worth that so many of ten annotators gave.
_WORTH = (0.0, 0.3, 0.6, 0.9, 1.0)


class Asked(NamedTuple):
    """What a row says: a question, and what is right."""

    record: Record
    id: str
    media: Mapping[str, Path]
    question: str
    answers: tuple[str, ...]  # of all annotators, as they stand in the file; a single one is simply right
    label: Mapping[str, float] | None  # answer -> its worth, 0 to 1, where the file says so
    meta: Mapping[str, Any]


class QuestionSet(MediaSet):
    """Judged by VQA accuracy where there are several annotators' answers, else by exact match."""

    class Options(MediaSet.Options):
        """Those of every published set, and what its questions add."""

        # What is learnt in split `train`: the answer that is worth most; one drawn in each epoch by what it is worth
        # (eP-ALM's rule), or any of them alike; the first in the file (PETAL's rule).
        target: Literal["sampled", "best", "all", "first"] = "sampled"
        dialect: Dialect | None = None  # of VQA accuracy; None = the one the data set is published with
        top_answers: int | None = Field(None, ge=1)  # judge only answers among so many commonest of training

    metric = "accuracy"
    lowercase = True  # generated text is judged in lower case
    dialect: ClassVar[Dialect] = "official"

    @abstractmethod
    def rows(self, split: str) -> Iterator[Asked]:
        """The rows of a split."""

    def entries(self, split: str) -> Iterator[tuple[Record, Sample]]:
        frequent = self._frequent if self._options.top_answers and split != TRAIN else None
        for row in self.rows(split):
            worth = _worth(row)
            if not worth and split != "test":
                raise row.record.error("no answer to the question")
            if frequent is not None and next(iter(worth), None) not in frequent:
                continue
            if not any(character.isalnum() for character in row.question):
                raise row.record.error(f"the question holds no text: {short(repr(row.question))}")
            targets = self._targets(row, worth) if split == TRAIN else tuple(worth)
            yield row.record, Sample(row.id, row.media, row.question, targets, self._meta(row))

    def _meta(self, row: Asked) -> dict[str, Any]:
        meta = {key: value for key, value in row.meta.items() if value is not None}
        if len(row.answers) > 1:
            meta["answers"] = [sys.intern(answer) for answer in row.answers]
        elif row.label and len(row.label) > 1:
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
        cleaned = [self.clean(text) for text in predictions]
        asked = [sample.meta.get("answers") for sample in samples]
        if any(asked) and not all(asked):
            lacking = samples[asked.index(None)].id
            raise UserError(f"sample `{lacking}` has no annotators' answers to judge its answer by, and others do")
        if any(asked):
            vqa = leaf("metrics", "vqa").module
            scored = vqa.score(cleaned, asked, vqa.Options(dialect=self._options.dialect or self.dialect))
        else:
            scored = Scored({}, [{"accuracy": self._match(*pair)} for pair in zip(cleaned, samples, strict=True)])
        return by_answer_type(scored, samples)

    def _match(self, answer: str, sample: Sample) -> float:
        """What an answer is worth that has to be one of the targets."""
        if not sample.targets:
            raise UserError(f"sample `{sample.id}` has no targets to judge its answer by")
        worth = sample.meta.get("label") or dict.fromkeys(sample.targets, 1.0)
        return max((float(value) for target, value in worth.items() if self._same(answer, target)), default=0.0)

    def _same(self, answer: str, target: str) -> bool:
        return answer.split() == self.clean(target).split()


def by_answer_type(scored: Scored, samples: Sequence[Sample]) -> Scored:
    """Adds `accuracy_<answer_type>` of each type in the samples' meta."""
    rows = []
    for row, sample in zip(scored.per_sample, samples, strict=True):
        key = exact.group_key(str(sample.meta.get("answer_type", "")))
        rows.append({**row, key: row["accuracy"]} if key else row)
    return replace(scored, summary={**exact.averages(rows), **scored.summary}, per_sample=rows)


def _worth(row: Asked) -> dict[str, float]:
    """Answer -> its worth, the best first; of equal ones the one that comes first in the file."""
    if row.label is not None:
        found = {answer: float(value) for answer, value in row.label.items() if value > 0}
    else:
        counts = Counter(answer for answer in row.answers if answer.strip())
        single = len(row.answers) == 1
        return {a: 1.0 if single else _WORTH[min(n, 4)] for a, n in counts.most_common()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
