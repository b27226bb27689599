"""Rows of one medium as one sample: a table with one caption a row gives each medium all its captions."""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from perceptune.data.lazy_rows import LazyRows
from perceptune.types import Sample


class RowGroups:
    """Groups of rows with the same prompt, media and places of these; 8 bytes per row. Rows without media are alone."""

    def __init__(self) -> None:
        self._keys = array("q")
        self._captions = 0

    def add(self, sample: Sample) -> None:
        """Add the next row."""
        media = tuple(sample.media.items())
        self._keys.append(hash((media, sample.prompt, *sample.marks, *sample.history) if media else (sample.id,)))
        self._captions += len(sample.targets)

    def note(self) -> str:
        """Return what grouping does to the rows; empty if it leaves them as they are."""
        rows, groups = len(self._keys), len(np.unique(np.array(self._keys, np.int64)))
        if groups == rows:
            return ""
        captions = "one caption each" if self._captions == rows else f"{self._captions:,} captions"
        return f"{rows:,} rows with {captions} are grouped to {groups:,} samples; `group_rows: false` keeps them"

    def merged(self, rows: Sequence[Sample]) -> Sequence[Sample]:
        """Return a lazy sequence of one sample per group: its first row, with the targets of all."""
        keys = np.array(self._keys, np.int64)
        _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        if len(first) == len(keys):
            return rows
        order = np.argsort(first)  # groups stand where their first rows do
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        members = np.argsort(place[group], kind="stable")
        ends = np.cumsum(sizes[order])

        def read(indices: Iterable[int]) -> Iterator[Sample]:
            return _merged(rows, members, ends, indices)

        return LazyRows(read, range(len(ends)))


def _merged(
    rows: Sequence[Sample], members: NDArray[np.int64], ends: NDArray[np.int64], indices: Iterable[int]
) -> Iterator[Sample]:
    sizes = deque[int]()

    def wanted() -> Iterator[int]:
        for index in indices:
            start, end = int(ends[index - 1]) if index else 0, int(ends[index])
            sizes.append(end - start)
            yield from map(int, members[start:end])

    found = rows.at(wanted()) if isinstance(rows, LazyRows) else (rows[index] for index in wanted())
    for first in found:  # rows are read one by one, so that `sizes` holds only the size of this group
        others = islice(found, sizes.popleft() - 1)
        yield replace(first, targets=tuple(target for row in (first, *others) for target in row.targets))
