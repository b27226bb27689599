"""A held-out part of the training data, for selecting settings without the test split."""

from collections.abc import Sequence
from functools import cached_property

import torch

from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.data.lazy_rows import select
from perceptune.data.metrics.base import Scored
from perceptune.data.subset import sample_count
from perceptune.data.tasks.base import Task, check_split
from perceptune.errors import UserError
from perceptune.types import Medium, Sample

HELD_OUT = "held-out"
SEED = 4321  # fixed, so that held-out media do not depend on the training seed


def selecting_splits(splits: Sequence[str]) -> list[str]:
    """Return the splits on which settings and checkpoints may be selected, the preferred one first."""
    return [split for split in ("validation", HELD_OUT) if split in splits]


def is_test(split: str) -> bool:
    """Return whether a split must not be used for selection: `test`, `testdev`, `test-std`, `testA`."""
    return split.startswith("test")


class HoldoutSplit(Task):
    """A task with a split `held-out`: random media of the first split, with all their samples.

    It follows the training split, so the split that is evaluated by default, the last, stays the same unless there was
    only one.
    """

    def __init__(self, task: Task, amount: int | float) -> None:
        self._task, self._amount = task, amount
        self.splits = (task.splits[0], HELD_OUT, *task.splits[1:])
        self.metric, self.lowercase, self.weights = task.metric, task.lowercase, task.weights
        self.data_option = task.data_option  # type: ignore[misc]  # the wrapper has the option of the wrapped task
        self.first_line, self.keeps_period = task.first_line, task.keeps_period

    def samples(self, split: str) -> Sequence[Sample]:
        """Return the rows of a split in order. Raises `UserError` if no training samples are left."""
        check_split(split, self.splits)
        first = self.splits[0]
        if split not in (first, HELD_OUT):
            return self._task.samples(split)
        return select(self._rows, self._parts[split == HELD_OUT])

    def read_from(self, split: str) -> frozenset[str]:
        """Return the sources of a split; none for `held-out`, on which no run was trained."""
        return frozenset() if split == HELD_OUT else self._task.read_from(split)

    @property
    def cleaning(self) -> AnswerCleaning:
        return self._task.cleaning

    def part_of(self, sample: Sample) -> str:
        return self._task.part_of(sample)

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        return self._task.score(predictions, samples)

    @cached_property
    def _rows(self) -> Sequence[Sample]:
        return self._task.samples(self.splits[0])

    @cached_property
    def _parts(self) -> tuple[list[int], list[int]]:
        """Indices of the training rows, and of those held out."""
        groups = _groups(self._rows)
        wanted = sample_count(len(self._rows), self._amount) or 0
        sizes = torch.bincount(torch.tensor(groups))
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(SEED))
        out = set(order[: int((sizes[order].cumsum(0) < wanted).sum()) + 1].tolist())
        kept = [index for index, group in enumerate(groups) if group not in out]
        if not kept:
            raise UserError(
                f"`train.hold_out` = {self._amount} leaves nothing of split `{self.splits[0]}` to train on: "
                f"it has {len(sizes)} different media with {len(self._rows)} samples"
            )
        return kept, [index for index, group in enumerate(groups) if group in out]


def _groups(rows: Sequence[Sample]) -> list[int]:
    """Return a group number for each row, the same for rows with the same media; rows without media are alone."""
    numbers: dict[tuple[Medium, ...] | str, int] = {}
    return [
        numbers.setdefault(tuple(sample.media[name] for name in sorted(sample.media)) or sample.id, len(numbers))
        for sample in rows
    ]
