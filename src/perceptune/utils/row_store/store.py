"""An append-only store of tensor rows by 16-byte key, shared by processes without a lock.

Every process appends to files of its own (`files.py`) and reads those of others after `refresh`. Rows are read through
memory maps whose pages are released, so that neither the index (36 bytes per row) nor the rows fill the memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.utils.atomic_io import write_whole
from perceptune.utils.row_store.files import KEY_BYTES, NOWHERE, Index, Records, RowShard, Writer, places_of, refused

STORE_META = "meta.json"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "uint8")}
SHARD_BYTES = 256 * 2**20
IDLE_SECONDS = 3600  # `compact` skips files that were written to more recently

_RESIDENT = 32 * 2**20  # bytes of mapped pages touched before they are released
_AROUND = 2 * 2**20  # maximum that the system maps around a touched page: a large folio of its page cache
_MAPS = 64  # files mapped at a time
# Inside `Store`, `bytes` is a property.
Key: TypeAlias = bytes
Data: TypeAlias = bytes


class Store:
    """A store of rows of one kind in `folder`. `meta` describes the kind and must contain `dtype` and `shape`.

    `shape` is that of a row; one dimension may be -1. The folder is created with the first row. Raises `UserError` if
    it contains rows of another kind.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.meta = folder, dict(meta)
        self.dtype: torch.dtype = DTYPES[meta["dtype"]]
        self.shape = tuple(meta["shape"])
        free = -1 in self.shape
        self._unit = abs(int(np.prod(self.shape))) * self.dtype.itemsize  # bytes of a row, or per unit of its -1
        self._fits = (lambda length: length % self._unit == 0) if free else (lambda length: length == self._unit)
        self._index, self._shards = Index(), list[RowShard]()
        self._writer, self._limit = Writer(folder, shard_bytes), shard_bytes
        self._touched, self._mapped = 0, dict[int, None]()
        if (folder / STORE_META).is_file():
            if (stored := read_meta(folder)) != json.loads(json.dumps(self.meta)):
                raise UserError(
                    f"{folder / STORE_META}: describes other rows than those wanted: {stored}; remove the folder"
                )
            with suppress(OSError):  # another user's folder may be read-only
                os.utime(folder / STORE_META)  # when it was last used
        self.refresh()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open an existing store without changing its time of last use."""
        used = (folder / STORE_META).stat()
        store = cls(folder, read_meta(folder))
        with suppress(OSError):
            os.utime(folder / STORE_META, ns=(used.st_atime_ns, used.st_mtime_ns))
        return store

    def __len__(self) -> int:
        return len(self._index)

    @property
    def bytes(self) -> int:
        """Total size of the files, including those of other processes."""
        return sum(path.stat().st_size for path in self._files("*"))

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Return the keys that have no row, each once. Other threads may call it while one appends."""
        distinct = list(dict.fromkeys(keys))
        absent = self._index.find(distinct)["shard"] == NOWHERE
        return [key for key, gone in zip(distinct, absent, strict=True) if gone]

    def read(self, keys: Sequence[Key]) -> list[Tensor | None]:
        """Return the row of each key; None if there is none or if it is damaged, and it then counts as missing.

        Rows of a fixed shape are views of one tensor.
        """
        rows: list[Tensor | None] = [None] * len(keys)
        fixed = None if -1 in self.shape else torch.empty(len(keys), self._unit, dtype=torch.uint8)
        for i, data in self._bytes_of(keys):
            row = torch.empty(len(data), dtype=torch.uint8) if fixed is None else fixed[i]
            row.numpy()[:] = np.frombuffer(data, np.uint8)
            rows[i] = row.view(self.dtype).view(self.shape)
        return rows

    def append(self, keys: Sequence[Key], rows: Iterable[Tensor]) -> None:
        """Append rows, converted to the store's dtype; a later row of the same key replaces an earlier one.

        After it returns, a kill loses none of them. Raises `UserError` if the disk is full or the write fails.
        """
        data = [self._as_bytes(row) for row in rows]
        if any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"keys have {KEY_BYTES} bytes")
        if self._writer.process != os.getpid():
            self._writer = Writer(self.folder, self._limit)
        self._describe()
        start, size = 0, 0
        for end in range(1, len(data) + 1):
            size += data[end - 1].nbytes
            if end == len(data) or size + data[end].nbytes > self._limit:
                records = self._writer.append(keys[start:end], data[start:end])
                self._index.add_few(keys[start:end], places_of(records, self._own_shard(records)))
                start, size = end, 0

    def refresh(self) -> None:
        """Read the index of rows that other processes have appended."""
        known = {shard.rows for shard in self._shards}
        self._shards += [RowShard(path) for path in self._files(".rows") if path not in known]
        found = [(number, shard.news()) for number, shard in enumerate(self._shards)]
        found = [(number, records) for number, records in found if len(records)]
        if found:
            places = np.concatenate([places_of(records, number) for number, records in found])
            keys = np.concatenate([records["key"] for _, records in found])
            fits = self._fits(places["length"])
            self._index.add(keys[fits], places[fits])

    def verify(self) -> dict[Path, int]:
        """Read every byte; return damaged records and rows by file. Writes that a kill cut off do not count."""
        damaged: dict[Path, int] = {}
        for path in self._files(".rows"):
            shard = RowShard(path)
            found = shard.check()
            damaged |= {file: n for file, n in ((shard.index, found.records), (path, found.rows)) if n}
        return damaged

    def compact(self, idle: float = IDLE_SECONDS) -> int:
        """Rewrite the good rows of damaged, torn and small files, and remove these; return the bytes freed.

        Files written to within the last `idle` seconds are skipped, because their writer may still be running.
        """
        before, old, small = self.bytes, list[RowShard](), list[RowShard]()
        for leftover in self.folder.glob(".*.tmp"):
            if time.time() - leftover.stat().st_mtime >= idle:
                leftover.unlink(missing_ok=True)
        for shard in self._shards:
            files = [path for path in (shard.rows, shard.index) if path.exists()]
            if not files or time.time() - max(path.stat().st_mtime for path in files) < idle:
                continue
            if any(shard.check()):
                old.append(shard)
            elif shard.rows.stat().st_size < self._limit // 2:
                small.append(shard)
        old += small if len(small) + len(old) > 1 else []
        self._move({self._shards.index(shard) for shard in old})
        for shard in old:
            shard.close()
            shard.index.unlink(missing_ok=True)  # first, because a record without its row would count as damage
            shard.rows.unlink(missing_ok=True)
        return before - self.bytes

    def _move(self, shards: set[int]) -> None:
        keys = self._index.sorted[0].tobytes()
        places = self._index.sorted[1]
        here = np.flatnonzero(np.isin(places["shard"], list(shards)))
        for start in range(0, len(here), 256):
            some = dict.fromkeys(keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in here[start : start + 256].tolist())
            good = {key: row for key, row in zip(some, self.read(list(some)), strict=True) if row is not None}
            if good:
                self.append(list(good), good.values())

    def _bytes_of(self, keys: Sequence[Key]) -> Iterator[tuple[int, Data]]:
        """Yield the position and bytes of each key's newest good row, in the order of the files."""
        wanted = np.arange(len(keys))
        while len(wanted):
            places = self._index.find([keys[i] for i in wanted.tolist()])
            bad = np.zeros(len(wanted), bool)
            for at in np.lexsort((places["offset"], places["shard"])):
                place = places[at]
                if place["shard"] == NOWHERE:
                    break  # `NOWHERE` sorts last
                data = self._row(place)
                if data is None:
                    bad[at] = True
                else:
                    yield int(wanted[at]), data
            if bad.any():
                first = {keys[int(wanted[at])]: at for at in np.flatnonzero(bad)}
                self._index.drop(list(first), places[list(first.values())])
            wanted = wanted[bad]

    def _row(self, place: np.void) -> Data | None:
        number, length = int(place["shard"]), int(place["length"])
        self._touched += length + _AROUND
        if self._touched > _RESIDENT:
            self._touched = 0
            for other in self._mapped:
                self._shards[other].release()
        if number not in self._mapped and len(self._mapped) >= _MAPS:
            oldest = next(iter(self._mapped))
            del self._mapped[oldest]
            self._shards[oldest].close()
        self._mapped[number] = None
        return self._shards[number].row(int(place["offset"]), length, int(place["row_crc"]))

    def _as_bytes(self, row: Tensor) -> memoryview:
        pattern = self.shape
        if len(row.shape) != len(pattern) or any(p not in (-1, n) for p, n in zip(pattern, row.shape, strict=True)):
            raise ValueError(f"a row of shape {tuple(row.shape)} in a store of shape {pattern}")
        flat = row.detach().to("cpu", self.dtype).contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data

    def _own_shard(self, records: Records) -> int:
        """Return the number of the writer's current pair, which ends with `records`."""
        if not self._shards or self._shards[-1].rows != self._writer.rows:
            numbers = [n for n, shard in enumerate(self._shards) if shard.rows == self._writer.rows]
            if numbers:
                self._shards[numbers[0]].seen += records.nbytes
                return numbers[0]
            self._shards.append(RowShard(self._writer.rows))
        self._shards[-1].seen += records.nbytes
        return len(self._shards) - 1

    def _files(self, suffix: str) -> list[Path]:
        """Return the files of pairs, oldest first."""
        suffixes = (".rows", ".index") if suffix == "*" else (suffix,)
        return sorted(path for path in self.folder.glob("*-*") if path.suffix in suffixes)

    def _describe(self) -> None:
        """Create the folder and `meta.json` if they are absent."""
        path = self.folder / STORE_META
        if path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, [json.dumps(self.meta, indent=2).encode()])
        except OSError as error:
            raise refused(path, error) from error


def digest_of(*parts: bytes | memoryview) -> bytes:
    """Return a key of 16 bytes: blake2b of the concatenated parts."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def folder_for(root: Path, description: Mapping[str, Any]) -> Path:
    """Return the folder of a cache for rows of a kind, named by a hash of its description (`Store`'s `meta`)."""
    return root / hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def read_meta(folder: Path) -> dict[str, Any]:
    """Read the description of the rows in a store's folder. Raises `UserError` if its `meta.json` is damaged."""
    try:
        meta: dict[str, Any] = json.loads((folder / STORE_META).read_text(encoding="utf-8"))
        DTYPES[meta["dtype"]], tuple(meta["shape"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / STORE_META}: damaged; remove the folder, it will be built anew") from None
    return meta
