"""A held-out part of the training data, for selecting settings without the test split."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import torch

from perceptune.config.hold_out import HELD_OUT, TEST, VALIDATION, HoldOutConfig, held_out_splits
from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.data.lazy_rows import select
from perceptune.data.media_groups import KEY, MediaGroup, connect, media_groups
from perceptune.data.metrics.base import Scored
from perceptune.data.subset import sample_count
from perceptune.data.tasks.base import Task, check_split
from perceptune.errors import UserError
from perceptune.types import Media, Sample

SEED = 4321  # fixed, so that held-out media do not depend on the training seed


_ADVICE = {
    VALIDATION: ": set `train.hold_out.selecting` to 0 for `test` alone",
    TEST: ": set `train.hold_out.selecting` to 1 for `validation` alone",
}


def selecting_splits(splits: Sequence[str]) -> list[str]:
    """Return the splits on which settings and checkpoints may be selected, the preferred one first."""
    return [split for split in (VALIDATION, HELD_OUT) if split in splits]


def is_test(split: str) -> bool:
    """Return whether a split must not be used for selection: `test`, `testdev`, `test-std`, `testA`."""
    return split.startswith("test")


class HoldoutSplit(Task):
    """A task from whose first split random media are held out, with all their samples.

    A number makes split `held-out`, which follows the training split, so that the split evaluated by default, the last,
    stays the same unless there was only one. A `HoldOutConfig` makes `validation` and, as the last, `test`.
    """

    def __init__(self, task: Task, amount: int | float | HoldOutConfig) -> None:
        self._task, self._amount = task, amount
        self._made = held_out_splits(amount)
        for name in self._made:
            if name in task.splits:
                raise UserError(
                    f"`train.hold_out` makes split `{name}`, which the task has already{_ADVICE.get(name, '')}"
                )
        last = [name for name in self._made if name == TEST]
        self.splits = (task.splits[0], *[name for name in self._made if name != TEST], *task.splits[1:], *last)
        self.metric, self.lowercase, self.weights = task.metric, task.lowercase, task.weights
        self.data_option = task.data_option  # type: ignore[misc]  # the wrapper has the option of the wrapped task
        self.first_line, self.keeps_period = task.first_line, task.keeps_period

    def samples(self, split: str) -> Sequence[Sample]:
        """Return the rows of a split in order. Raises `UserError` if no training samples are left."""
        check_split(split, self.splits)
        if split != self.splits[0] and split not in self._made:
            return self._task.samples(split)
        return select(self._rows, self._parts[split])

    def read_from(self, split: str) -> frozenset[str]:
        """Return the sources of a split; none for a held-out one, on which no run was trained."""
        return frozenset() if split in self._made else self._task.read_from(split)

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
    def _parts(self) -> Mapping[str, list[int]]:
        """Indices of the training rows, and of those held out, by split."""
        if isinstance(self._amount, HoldOutConfig):
            parts = held_out_media(media_groups(self._rows, self._amount.group_by), self._amount)
            out = {index for part in parts.values() for index in part}
            return {self.splits[0]: [index for index in range(len(self._rows)) if index not in out], **parts}
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
        return {self.splits[0]: kept, HELD_OUT: [index for index, group in enumerate(groups) if group in out]}


def held_out_media(groups: Sequence[MediaGroup], config: HoldOutConfig) -> dict[str, list[int]]:
    """Return the rows of each split that whole groups are held out for.

    Groups are ordered by a hash of the seed and their name, so most of them stay where they are when data are added.
    Raises `UserError` if a group has more than half of the media, or a part would be empty.
    """
    total = sum(group.media for group in groups)
    _check_groups(groups, total, config.group_by)
    ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{config.seed} {group.name}".encode()).digest())
    wanted, made = sample_count(total, config.media) or 0, held_out_splits(config)
    count = max(_nearest(ordered, wanted), min(len(made), wanted))
    if count >= len(ordered) or wanted >= total:
        raise UserError(
            f"`train.hold_out.media: {config.media}` leaves nothing to train on: "
            f"there are {total} media in {len(groups)} groups"
        )
    if count < len(made):
        raise UserError(
            f"`train.hold_out.media: {config.media}` holds out one medium of {total}, so `validation` or `test` would "
            "be empty: hold out more, or set `train.hold_out.selecting` to 1 (only `validation`) or 0 (only `test`)"
        )
    out = ordered[:count]
    cut = count if TEST not in made else 0
    if len(made) == 2:
        cut = min(max(_nearest(out, config.selecting * sum(group.media for group in out)), 1), count - 1)
    parts = {VALIDATION: out[:cut], TEST: out[cut:]}
    return {name: sorted(index for group in parts[name] for index in group.rows) for name in made}


def _check_groups(groups: Sequence[MediaGroup], total: int, group_by: str | None) -> None:
    if not groups:
        raise UserError("`train.hold_out`: the training split is empty")
    largest = max(groups, key=lambda group: group.media)
    if len(groups) > 1 and 2 * largest.media <= total:
        return
    if total == 1:
        raise UserError("`train.hold_out`: the training split has one medium only: nothing can be held out")
    if group_by is None:
        raise UserError(
            f"`train.hold_out`: {largest.media} of {total} media are linked by samples that share one: "
            "they cannot be split"
        )
    raise UserError(
        f"`{KEY}: {group_by}` puts {largest.media} of {total} media into one group (`{largest.name}`): "
        "groups should be small and many"
    )


def _nearest(groups: Sequence[MediaGroup], wanted: float) -> int:
    """Return the number of first groups whose media come nearest to a number; of two the smaller."""
    sums = [0, *accumulate(group.media for group in groups)]
    return min(range(len(sums)), key=lambda count: abs(sums[count] - wanted))


def _groups(rows: Sequence[Sample]) -> list[int]:
    """Return a group number for each row, the same for rows with the same media; rows without media are alone.

    A row with several media of a modality is in the group of each of them.
    """
    numbers: dict[tuple[Media, ...] | str, int] = {}
    of_row = [numbers.setdefault(_media_of(sample), len(numbers)) for sample in rows]
    first = connect([_keys_of(media) for media in numbers])
    places = {number: place for place, number in enumerate(dict.fromkeys(first))}
    return [places[first[number]] for number in of_row]


def _media_of(sample: Sample) -> tuple[Media, ...] | str:
    return tuple(sample.media[name] for name in sorted(sample.media)) or sample.id


def _keys_of(media: tuple[Media, ...] | str) -> list[Hashable]:
    if isinstance(media, str) or not any(isinstance(given, tuple) for given in media):
        return [media]
    return [(medium,) for given in media for medium in (given if isinstance(given, tuple) else (given,))]
