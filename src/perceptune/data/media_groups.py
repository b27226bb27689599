"""Groups of samples that must not be split: those with the same media, and those of one recording or scene."""

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from perceptune.errors import UserError
from perceptune.types import Medium, Member, Sample

KEY = "train.hold_out.group_by"


class MediaGroup(NamedTuple):
    """Rows that stay together."""

    name: str  # does not depend on the folder of the data or on the order of the rows
    media: int  # number of different media, or of sets of media if samples have several
    rows: list[int]


class _Media(NamedTuple):
    """The media of a sample."""

    keys: tuple[Hashable, ...]  # equal for the same medium; bytes by their hash, as they may not fit into memory
    names: tuple[str, ...]


def media_groups(rows: Sequence[Sample], group_by: str | None = None) -> list[MediaGroup]:
    """Return the groups of all rows: two rows with a medium, or a value of `group_by`, in common are in one group.

    `group_by` is a column if a row has it, else a regular expression that is searched in the file names of media.
    Raises `UserError` naming the first row without such a column, or the first medium without a match.
    """
    numbers: dict[_Media, int] = {}
    first: list[int] = []  # row of each media
    of_row: list[int] = []
    column: list[Any] = []
    for index, sample in enumerate(rows):
        of_row.append(numbers.setdefault(_media_of(sample), len(numbers)))
        if len(numbers) > len(first):
            first.append(index)
        column.append(None if group_by is None else sample.meta.get(group_by))
    media = list(numbers)
    labels: list[set[str]] = [set() for _ in media]
    if any(value is not None for value in column):
        for index, (number, value) in enumerate(zip(of_row, column, strict=True)):
            if value is None:
                raise UserError(f"`{KEY}: {group_by}`: sample `{rows[index].id}` has no column `{group_by}`, others do")
            labels[number].add(str(value))
    elif group_by is not None:
        pattern = _compiled(group_by)
        labels = [
            {_matched(pattern, name, rows, index) for name in one.names}
            for one, index in zip(media, first, strict=True)
        ]
    return _connected(media, labels, of_row)


def _connected(media: Sequence[_Media], labels: Sequence[set[str]], of_row: Sequence[int]) -> list[MediaGroup]:
    """Join media that share a key or a label, directly or through others."""
    root = connect([(*one.keys, *(("label", label) for label in own)) for one, own in zip(media, labels, strict=True)])
    rows: dict[int, list[int]] = {}
    for index, number in enumerate(of_row):
        rows.setdefault(root[number], []).append(index)
    members: dict[int, list[int]] = {}
    for number in range(len(media)):
        members.setdefault(root[number], []).append(number)
    return [
        MediaGroup(min(name for m in inside for name in (labels[m] or media[m].names)), len(inside), rows[number])
        for number, inside in members.items()
    ]


def connect(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return for each item the first one that it shares a key with, directly or through others."""
    parent = list(range(len(keys)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[Hashable, int] = {}
    for number, own in enumerate(keys):
        for shared in own:
            low, high = sorted((root(first.setdefault(shared, number)), root(number)))
            parent[high] = low
    return [root(number) for number in range(len(keys))]


def _media_of(sample: Sample) -> _Media:
    media = [medium for modality in sorted(sample.media) for medium in sample.list_media(modality)]
    if not media:  # alone
        return _Media((("sample", sample.id),), (sample.id,))
    return _Media(tuple(map(_key, media)), tuple(map(_name, media)))


def _key(medium: Medium) -> Hashable:
    return hashlib.sha256(medium).digest() if isinstance(medium, bytes) else medium


def _name(medium: Medium) -> str:
    """Return the end of a medium's path; for bytes their hash."""
    if isinstance(medium, bytes):
        return hashlib.sha256(medium).hexdigest()
    return medium.name if isinstance(medium, Member) else "/".join(medium.parts[-2:])


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"`{KEY}: {pattern}` is neither a column of the rows nor a regular expression: {error}"
        ) from None


def _matched(pattern: re.Pattern[str], name: str, rows: Sequence[Sample], index: int) -> str:
    sample = rows[index]
    columns = f"the rows have {', '.join(f'`{key}`' for key in sample.meta)}" if sample.meta else "the rows have none"
    given = f"`{KEY}: {pattern.pattern}` is no column ({columns}), and as a regular expression"
    if not sample.media or any(isinstance(medium, bytes) for _, medium in sample.iter_media()):
        raise UserError(f"{given} it needs file names, which the media of sample `{sample.id}` do not have")
    found = pattern.search(file := name.rpartition("/")[2])
    if found is None or (pattern.groups and found[1] is None):
        raise UserError(f"{given} it is not found in `{file}` of sample `{sample.id}`")
    return found[1] if pattern.groups else found[0]
