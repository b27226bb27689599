"""Lazy rows: only the offsets of samples are kept in memory, 8 bytes per row."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from perceptune.data.records import MAX_LINE, RowError
from perceptune.errors import UserError
from perceptune.types import Sample

T = TypeVar("T")


class LazyRows(Sequence[T]):
    """A sequence whose items are created at each access; slices are lazy, too. Thread-safe if `read` is."""

    def __init__(self, read: Callable[[Iterable[int]], Iterator[T]], chosen: range | NDArray[np.int64]) -> None:
        """Use `read` to create the items of given indices in order; `chosen` are the indices of this sequence."""
        self._read, self._chosen = read, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazyRows[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazyRows[T]:
        if isinstance(index, slice):
            return LazyRows(self._read, self._chosen[index])
        [item] = self._read([int(self._chosen[index])])
        return item

    def __iter__(self) -> Iterator[T]:
        return self._read(map(int, self._chosen))

    def at(self, indices: Iterable[int]) -> Iterator[T]:
        """Yield the items at `indices`, each of which is taken when its item is."""
        return self._read(int(self._chosen[index]) for index in indices)


def select(rows: Sequence[T], indices: Sequence[int]) -> Sequence[T]:
    """Select the rows at `indices` lazily."""
    if indices == range(len(rows)):
        return rows
    wanted = np.asarray(indices, np.int64)
    if isinstance(rows, LazyRows):
        return LazyRows(rows._read, np.asarray(rows._chosen, np.int64)[wanted])
    return LazyRows(lambda chosen: (rows[index] for index in chosen), wanted)


class LazyRow(NamedTuple):
    """A line of one of the files of a table."""

    file: int  # index of the file
    line: int  # counted from 1
    text: bytes


def lines_of(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield lines with their ends, which are "\n" only. Raises `UserError` for a line that is too long for a row."""
    for number, (text, size) in enumerate(read_lines(file), 1):
        if size > MAX_LINE:
            raise RowError(
                f"{name}, line {number}: longer than {MAX_LINE // 2**20} MiB: has the file one row a line?", "long-line"
            )
        yield text


class RowTable:
    """Text files with one row per line, indexed by the offsets of rows. The files must not change."""

    def __init__(self, files: Sequence[Path], parse: Callable[[LazyRow], Sample | None]) -> None:
        """Read rows with `parse`, which raises `UserError` for an invalid row and returns None for a blank line."""
        self._files, self._parse = files, parse
        self._starts = array("q")  # offset of each row in its file, in bytes
        self._first: list[int] = []  # index of the first row of each file
        self._blank: list[array[int]] = []  # for each file: number of rows before each line without a row
        self._stamps: list[tuple[int, ...]] = []

    def scan(self) -> Iterator[Sample]:
        """Yield all samples. Must be exhausted once before the other methods are called."""
        for number in range(len(self._files)):
            with self._open(number) as file:
                first, offset, blank = len(self._starts), 0, array("q")
                self._first.append(first)
                self._blank.append(blank)
                self._stamps.append(_stamp(file))
                for line, (text, size) in enumerate(read_lines(file), 1):
                    sample = self._parse(LazyRow(number, line, text))
                    if sample is None:
                        blank.append(len(self._starts) - first)
                    else:
                        self._starts.append(offset)
                        yield sample
                    offset += size
                self._require_unchanged(number, file)

    def samples(self) -> LazyRows[Sample]:
        """Return all samples."""
        return LazyRows(self._samples, range(len(self._starts)))

    def row(self, index: int) -> LazyRow:
        """Return the text of a row."""
        [row] = self._rows([index])
        return row

    def _samples(self, indices: Iterable[int]) -> Iterator[Sample]:
        for row in self._rows(indices):
            sample = self._parse(row)
            if sample is None:
                raise self._changed(row.file)
            yield sample

    def _rows(self, indices: Iterable[int]) -> Iterator[LazyRow]:
        """Yield rows from files opened for this call, because threads and forked processes would share a position."""
        current = -1
        with ExitStack() as stack:
            for index in indices:
                number = bisect_right(self._first, index) - 1
                if number != current:
                    stack.close()
                    file, current = stack.enter_context(self._open(number)), number
                self._require_unchanged(number, file)
                file.seek(self._starts[index])
                place = index - self._first[number]
                yield LazyRow(number, place + 1 + bisect_right(self._blank[number], place), file.readline())

    def _open(self, number: int) -> BinaryIO:
        try:
            return self._files[number].open("rb")
        except OSError as error:
            raise self._changed(number) from error

    def _require_unchanged(self, number: int, file: BinaryIO) -> None:
        if _stamp(file) != self._stamps[number]:
            raise self._changed(number)

    def _changed(self, number: int) -> UserError:
        return UserError(f"{self._files[number]} was changed or removed while it was in use: start again")


def read_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each line, which ends at "\\n" only, and its size in bytes; only the start of one too long for a row."""
    while text := file.readline(MAX_LINE + 1):
        size = len(text)
        if size > MAX_LINE:
            part = text
            while not part.endswith(b"\n") and (part := file.readline(2**20)):
                size += len(part)
        yield text, size


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class Census:
    """Ids, as hashes of 8 bytes, and answer types of all samples of a table, for checks across rows."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._ids = array("q")
        self.answer_types: set[str] = set()
        for sample in samples:
            self.add(sample)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, sample: Sample) -> None:
        """Add the next sample."""
        self._ids.append(hash(sample.id))
        self.answer_types.add(sample.meta.get("answer_type", ""))

    def repeated(self, samples: Sequence[Sample]) -> tuple[int, int] | None:
        """Return (earlier, later) for the first sample whose id repeats an earlier one; None if ids are unique."""
        hashes = np.array(self._ids)
        order = np.argsort(hashes, kind="stable")
        again = np.sort(order[1:][np.diff(hashes[order]) == 0])
        for later in map(int, again):
            for earlier in map(int, np.flatnonzero(hashes[:later] == hashes[later])):
                if samples[earlier].id == samples[later].id:  # not two ids with the same hash
                    return earlier, later
        return None
