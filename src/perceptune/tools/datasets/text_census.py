"""Text statistics of a data set: lengths, the most frequent answers, repeated rows."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perceptune.data.conversations import answers_of
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.tools.datasets.problems import Problems
from perceptune.types import Sample

MOST_ANSWERS = 500_000  # distinct ones that are counted; captions may all be distinct
_SHOWN = 10


class TokenFormat(Protocol):
    """Conversion of samples to tokens: `models.text_format.TextFormat`, whose module imports torch."""

    def prompt_ids(self, sample: Sample) -> list[int]: ...

    def target_ids(self, target: str) -> list[int]: ...

    def training_ids(self, sample: Sample, target: str) -> tuple[list[int], int]: ...


class TextCensus:
    """Counts words, and tokens if there is a tokenizer; 16 bytes per row."""

    def __init__(self, problems: Problems, task: Task, split: str, text: TokenFormat | None) -> None:
        self._problems, self._task, self._text = problems, task, text
        self._trains = split == "train"
        self._numbers, self._ids, self._rows = array("q"), array("q"), array("q")
        self._lengths: dict[str, Counter[int]] = {"prompt words": Counter(), "target words": Counter()}
        self._answers: Counter[str] = Counter()
        self._types: Counter[str] = Counter()
        self._targets = self._without = self._captions = self._uncounted = self._several_lines = 0

    def look(self, number: int, where: str, sample: Sample, *, has_tokens: bool = True) -> None:
        """Count the row with this number; each answer of a conversation counts with the turns before it.

        Without `has_tokens` the recipe's text format does not take the row, and its tokens are not counted.
        """
        self._numbers.append(number)
        self._ids.append(hash(sample.id))
        media = tuple(sorted((key, str(medium)) for key, medium in sample.media.items()))
        self._rows.append(hash((media, sample.prompt, sample.targets, sample.marks, sample.history)))
        self._captions += not sample.prompt.strip()
        self._without += not sample.targets
        self._types[str(sample.meta.get("answer_type", ""))] += 1
        for part in answers_of(sample):
            words = sum(len(text.split()) for text in (*(turn.text for turn in part.history), part.prompt))
            self._lengths["prompt words"][words] += 1
            for target in part.targets:
                self._target(target)
        if self._text is not None and has_tokens:
            self._tokens(self._text, where, sample)

    def repeated_ids(self) -> list[tuple[int, int]]:
        """Return every row whose id an earlier row has, as (number, number of the first such row)."""
        return self._repeats(self._ids)

    def repeated_rows(self) -> list[tuple[int, int]]:
        """Return likewise rows with the media, prompt and targets of an earlier one."""
        return self._repeats(self._rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts in a form for JSON."""
        common = self._answers.most_common(_SHOWN)
        return {
            "rows": len(self._ids), "rows_without_question": self._captions, "rows_without_targets": self._without,
            "targets": self._targets, "targets_of_several_lines": self._several_lines,
            "first_line": self._task.first_line,
            "lengths": {name: _spread(counts) for name, counts in self._lengths.items() if counts},
            "answers": {
                "distinct": len(self._answers), "not_counted": self._uncounted,
                "most_frequent": [{"answer": a, "count": n, "share": n / self._targets} for a, n in common],
            },
            "answer_types": dict(self._types.most_common(20)) if set(self._types) - {""} else {},
        }  # fmt: skip

    def _target(self, target: str) -> None:
        self._targets += 1
        self._lengths["target words"][len(target.split())] += 1
        self._several_lines += len(target.strip().splitlines()) > 1
        answer = self._task.clean(target)
        if answer in self._answers or len(self._answers) < MOST_ANSWERS:
            self._answers[answer] += 1
        else:
            self._uncounted += 1

    def _tokens(self, text: TokenFormat, where: str, sample: Sample) -> None:
        """Count the LM's tokens; texts that do not fit it would stop a training or an evaluation."""
        try:
            for part in answers_of(sample):
                self._lengths.setdefault("prompt tokens", Counter())[len(text.prompt_ids(part))] += 1
                for target in part.targets:
                    counts = self._lengths.setdefault("target tokens", Counter())
                    counts[len(text.target_ids(target))] += 1
            for target in sample.targets if self._trains else ():
                text.training_ids(sample, target)
        except UserError as error:
            self._problems.add("text", f"{where}: {error}")

    def _repeats(self, hashes: array[int]) -> list[tuple[int, int]]:
        """Return repeated 64-bit hashes: one set of a million rows in 40 million has a collision."""
        values: NDArray[np.int64] = np.frombuffer(hashes, np.int64)
        _, places, group = np.unique(values, return_index=True, return_inverse=True)
        first = places[group]  # for each row, the first one with its hash
        again = np.flatnonzero(first != np.arange(len(first)))
        return [(self._numbers[later], self._numbers[first[later]]) for later in again]


def _spread(counts: Counter[int]) -> dict[str, float]:
    """Return minimum, mean, median, 99th percentile, maximum."""
    values, times = np.array(sorted(counts.items())).T
    reached, mean = np.cumsum(times) / times.sum(), round(float(np.average(values, weights=times)), 2)
    median, p99 = (int(values[np.searchsorted(reached, share)]) for share in (0.5, 0.99))
    return {"least": int(values[0]), "mean": mean, "median": median, "p99": p99, "greatest": int(values[-1])}
