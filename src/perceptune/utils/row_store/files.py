"""Pairs of files that hold rows: their bytes in `<name>.rows`, their positions in `<name>.index`.

A pair has one writer and only grows. The bytes of a row are written before its record, so a record without its row was
torn by a crash; both have a checksum, so a flipped bit is detected.
"""

import mmap
import os
import secrets
import time
import weakref
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceptune.errors import NotWritableError, UserError, disk_error

KEY_BYTES = 16
# `crc` is the checksum of the fields before it, `row_crc` that of the row's bytes.
RECORD = np.dtype([("key", "S16"), ("offset", "<u8"), ("length", "<u4"), ("row_crc", "<u4"), ("crc", "<u4")])
_BODY = RECORD.itemsize - 4
Records = NDArray[np.void]


class Scan(NamedTuple):
    """The content of an index: records whose rows exist, end of the part read, and number of damaged records."""

    records: Records
    end: int
    damaged: int


class Check(NamedTuple):
    """The damage of a pair of files."""

    records: int  # number of damaged records
    rows: int  # number of damaged rows
    torn: bool  # whether a kill left bytes without a record: harmless, but useless


def scan(rows: Path, start: int = 0) -> Scan:
    """Read the index of a pair from byte `start`; an incomplete record is left for the next call.

    Raises `FileNotFoundError` if the pair was removed.
    """
    with rows.with_suffix(".index").open("rb") as file:
        file.seek(start)
        data = file.read()
    # Read after the index, because a writer writes the rows before their records.
    size = rows.stat().st_size
    count = len(data) // RECORD.itemsize
    records = np.frombuffer(data, RECORD, count)
    view = memoryview(data)
    ends = range(0, count * RECORD.itemsize, RECORD.itemsize)
    crcs = np.fromiter((zlib.crc32(view[at : at + _BODY]) for at in ends), np.uint32, count)
    whole = (crcs == records["crc"]) & (records["offset"] + records["length"] <= size)
    return Scan(records[whole], start + count * RECORD.itemsize, int(count - whole.sum()))


class RowShard:
    """A reader of one pair; rows are read through a memory map."""

    def __init__(self, rows: Path) -> None:
        self.rows, self.index = rows, rows.with_suffix(".index")
        self.seen = 0  # number of bytes of the index read so far
        self._map: mmap.mmap | None = None

    def news(self) -> Records:
        """Return the records added since the last call."""
        try:
            if self.index.stat().st_size < self.seen + RECORD.itemsize:
                return np.empty(0, RECORD)
            found = scan(self.rows, self.seen)
        except FileNotFoundError:  # compacted by another process, which moved the rows to another pair
            return np.empty(0, RECORD)
        self.seen = found.end
        return found.records

    def row(self, offset: int, length: int, crc: int) -> bytes | None:
        """Return a copy of a row's bytes; None if they are damaged or missing."""
        if self._map is None or len(self._map) < offset + length:
            self.close()
            try:
                with self.rows.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (FileNotFoundError, ValueError):  # ValueError: an empty file cannot be mapped
                return b"" if length == crc == 0 else None
        row = self._map[offset : offset + length]
        return row if len(row) == length and zlib.crc32(row) == crc else None

    def check(self) -> Check:
        """Read the whole pair and count its damage."""
        try:
            found = scan(self.rows)
        except FileNotFoundError:  # killed between the creation of the two files
            return Check(0, 0, torn=True)
        bad = 0
        for number, record in enumerate(found.records):
            bad += self.row(int(record["offset"]), int(record["length"]), int(record["row_crc"])) is None
            if number % 512 == 0:
                self.release()
        self.close()
        sizes = (self.index.stat().st_size, self.rows.stat().st_size)
        return Check(found.damaged, bad, torn=sizes != (found.end, int(found.records["length"].sum())))

    def release(self) -> None:
        """Release the mapped pages; the system reads them from disk again when needed."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file."""
        if self._map is not None:
            self._map.close()
            self._map = None


class Writer:
    """A writer with pairs of its own; it starts a new one when the last has reached `limit` bytes. Not thread-safe."""

    def __init__(self, folder: Path, limit: int) -> None:
        # The time makes names sort by age; the random part keeps them unique if other machines share the folder.
        self.folder, self.limit = folder, limit
        self.name, self.number = f"{time.time_ns():016x}{secrets.token_hex(4)}", -1
        self.process = os.getpid()  # a forked child must not write to its parent's pair
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._ends = (0, 0)

    @property
    def rows(self) -> Path:
        """File of the current pair's rows."""
        return self.folder / f"{self.name}-{self.number:04d}.rows"

    def append(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Records:
        """Append rows to one pair, `self.rows`, and return their records. Raises `UserError` if the write fails.

        A failure leaves the pair as it was before the call.
        """
        records = np.zeros(len(keys), RECORD)
        size = sum(row.nbytes for row in rows)
        try:
            data, index = self._pair(size)
            offset = self._ends[0]
            for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
                records[i] = (key, offset, row.nbytes, zlib.crc32(row), 0)
                records["crc"][i] = zlib.crc32(records[i : i + 1].tobytes()[:_BODY])
                offset += row.nbytes
            _write(data, b"".join(rows))
            _write(index, records.tobytes())
        except OSError as error:
            self._undo()
            raise refused(self.rows, error) from error
        self._ends = (offset, self._ends[1] + records.nbytes)
        return records

    def close(self) -> None:
        """Close the files; a later `append` starts another pair."""
        if self._files is not None:
            self._close()
        self._files = None

    def _pair(self, size: int) -> tuple[BinaryIO, BinaryIO]:
        full = self._ends[0] > 0 and self._ends[0] + size > self.limit
        # `perceptune features gc` may have removed the pair.
        if self._files is None or full or not self.rows.with_suffix(".index").exists():
            self.close()
            self.number, self._ends = self.number + 1, (0, 0)
            data = self.rows.open("xb", buffering=0)
            try:
                self._files = (data, self.rows.with_suffix(".index").open("xb", buffering=0))
            except OSError:
                data.close()
                raise
            # Not by `__del__`: in a knot of objects the collector may come to the files first, which then complain.
            self._close = weakref.finalize(self, _close_all, self._files)
        return self._files

    def _undo(self) -> None:
        """Truncate the files to remove a failed write; if that fails too, the next append starts another pair."""
        if self._files is not None:
            try:
                for file, end in zip(self._files, self._ends, strict=True):
                    file.truncate(end)
                    file.seek(end)
            except OSError:
                self.close()


def _close_all(files: Iterable[BinaryIO]) -> None:
    for file in files:
        file.close()


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`: one call of an unbuffered write may write only a part."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def refused(path: Path, error: OSError) -> UserError:
    """Return the `UserError` for a failed write to a cache."""
    found = disk_error(path, error)
    message = f"{found}; or name another folder by `cache.dir`, or set `cache.features: memory`"
    return NotWritableError(message, found.reason) if isinstance(found, NotWritableError) else UserError(message)


PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("row_crc", "<u4"), ("shard", "<u4")])


NOWHERE = 2**32 - 1  # the `shard` of a missing row


_TAIL = 1024  # rows kept in a dictionary before they are merged into the arrays


Places = NDArray[np.void]


def places_of(records: Records, shard: int) -> Places:
    """Return the places of the records of one pair of files."""
    places = np.zeros(len(records), PLACE)
    for name in ("offset", "length", "row_crc"):
        places[name] = records[name]
    places["shard"] = shard
    return places


class Index:
    """An index from keys to places: arrays sorted by key, the newest of equal keys last, and a short tail of new rows.

    `find` may be called from other threads while one thread adds, because rows only move from the tail to the arrays.
    """

    def __init__(self) -> None:
        self.sorted: tuple[NDArray[np.bytes_], Places] = (np.empty(0, f"S{KEY_BYTES}"), np.empty(0, PLACE))
        self.tail: dict[bytes, Places] = {}

    def __len__(self) -> int:
        keys = self.sorted[0]
        repeated = int((keys[1:] == keys[:-1]).sum())
        before = sum(place["shard"] != NOWHERE for place in self._find_sorted(list(self.tail)))
        return len(keys) - repeated + len(self.tail) - before

    def find(self, keys: Sequence[bytes]) -> Places:
        """Return the newest place of each key; its shard is `NOWHERE` if there is none."""
        newest = [self.tail.get(key) for key in keys]  # before the arrays, because rows move from the tail to them
        found = self._find_sorted(keys)
        for i, place in enumerate(newest):
            if place is not None:
                found[i] = place
        return found

    def add(self, keys: NDArray[np.bytes_], places: Places) -> None:
        """Add places that are newer than all in the index, ordered from oldest to newest."""
        order = np.argsort(keys, kind="stable")
        old_keys, old_places = self.sorted
        at = np.searchsorted(old_keys, keys[order], side="right")
        self.sorted = (np.insert(old_keys, at, keys[order]), np.insert(old_places, at, places[order]))

    def add_few(self, keys: Sequence[bytes], places: Places) -> None:
        """Add a few places to the tail, without copying the arrays at each call."""
        for key, place in zip(keys, places, strict=True):
            self.tail[key] = place.copy()
        if len(self.tail) >= _TAIL:
            self.add(np.array(list(self.tail), f"S{KEY_BYTES}"), np.array(list(self.tail.values()), PLACE))
            self.tail = {}

    def drop(self, keys: Sequence[bytes], places: Places) -> None:
        """Remove places that `find` returned; `find` then returns an older place of the same key."""
        gone = []
        for key, place in zip(keys, places, strict=True):
            newest = self.tail.get(key)
            if newest is not None and newest == place:
                del self.tail[key]
            else:
                gone.append(key)
        at = np.searchsorted(self.sorted[0], np.array(gone, f"S{KEY_BYTES}"), side="right") - 1
        self.sorted = (np.delete(self.sorted[0], at), np.delete(self.sorted[1], at))

    def _find_sorted(self, keys: Sequence[bytes]) -> Places:
        known, places = self.sorted
        found = np.zeros(len(keys), PLACE)
        found["shard"] = NOWHERE
        wanted = np.array(keys, f"S{KEY_BYTES}")
        at = np.searchsorted(known, wanted, side="right") - 1
        hit = at >= 0
        hit[hit] = known[at[hit]] == wanted[hit]
        found[hit] = places[at[hit]]
        return found
