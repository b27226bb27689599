"""An append-only store of tensor rows by 16-byte key, shared by processes without a lock.

Every process appends to files of its own (`shards.py`) and sees those of others after `refresh`. Rows are read through
memory maps whose pages are given back, so that neither the index (36 bytes a row) nor the rows fill the memory.
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
IDLE_SECONDS = 3600  # files that were written to more recently are left alone by `compact`

_RESIDENT = 32 * 2**20  # bytes of mapped pages touched before they are given back
_AROUND = 2 * 2**20  # what the system maps around a touched page at most: a large folio of its page cache
_MAPS = 64  # files mapped at a time
# Inside `Store`, the name `bytes` is taken.
Key: TypeAlias = bytes
Data: TypeAlias = bytes


class Store:
    """Rows of one kind in `folder`. `meta` says what they are; it must hold `dtype` and `shape`.

    `shape` is that of a row; one dimension may be -1. The folder appears with the first row. Raises `UserError` if it
    holds rows of another kind.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.meta = folder, dict(meta)
        self.dtype: torch.dtype = DTYPES[meta["dtype"]]
        self.shape = tuple(meta["shape"])
        free = -1 in self.shape
        self._unit = abs(int(np.prod(self.shape))) * self.dtype.itemsize  # bytes of a row, or of what it is made of
        self._fits = (lambda length: length % self._unit == 0) if free else (lambda length: length == self._unit)
        self._index, self._shards = Index(), list[RowShard]()
        self._writer, self._limit = Writer(folder, shard_bytes), shard_bytes
        self._touched, self._mapped = 0, dict[int, None]()
        if (folder / STORE_META).is_file():
            if (stored := read_meta(folder)) != json.loads(json.dumps(self.meta)):
                raise UserError(
                    f"{folder / STORE_META}: describes other rows than those wanted: {stored}; remove the folder"
                )
            with suppress(OSError):  # somebody else's, to be read only
                os.utime(folder / STORE_META)  # when it was last used
        self.refresh()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """A store that exists. Its time of last use stays."""
        used = (folder / STORE_META).stat()
        store = cls(folder, read_meta(folder))
        with suppress(OSError):
            os.utime(folder / STORE_META, ns=(used.st_atime_ns, used.st_mtime_ns))
        return store

    def __len__(self) -> int:
        return len(self._index)

    @property
    def bytes(self) -> int:
        """Size of the files, those of other processes included."""
        return sum(path.stat().st_size for path in self._files("*"))

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the keys that have no row, each once. Other threads may ask while one appends."""
        distinct = list(dict.fromkeys(keys))
        absent = self._index.find(distinct)["shard"] == NOWHERE
        return [key for key, gone in zip(distinct, absent, strict=True) if gone]

    def read(self, keys: Sequence[Key]) -> list[Tensor | None]:
        """The row of each key; None where there is none, or where it is damaged: then it is missing from now on.

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
        """Adds rows, in the store's dtype; of two rows of one key the later one counts.

        When it returns, a killed process loses none of them. Raises `UserError` if the disk is full or refuses.
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
        """Takes notice of rows that other processes have appended."""
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
        """Reads every byte: damaged records and rows by file. What a kill left half-written is no damage."""
        damaged: dict[Path, int] = {}
        for path in self._files(".rows"):
            shard = RowShard(path)
            found = shard.check()
            damaged |= {file: n for file, n in ((shard.index, found.records), (path, found.rows)) if n}
        return damaged

    def compact(self, idle: float = IDLE_SECONDS) -> int:
        """Moves the good rows out of damaged, torn and many small files, which it removes; returns the bytes freed.

        Files written to within the last `idle` seconds may have a living writer and stay as they are.
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
            shard.index.unlink(missing_ok=True)  # first: a record without its row would look like damage
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
        """Position and bytes of each key's newest good row, in the order of the files."""
        wanted = np.arange(len(keys))
        while len(wanted):
            places = self._index.find([keys[i] for i in wanted.tolist()])
            bad = np.zeros(len(wanted), bool)
            for at in np.lexsort((places["offset"], places["shard"])):
                place = places[at]
                if place["shard"] == NOWHERE:
                    break  # the last of all shards
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
        """Number of the writer's current pair, whose newest records `records` are."""
        if not self._shards or self._shards[-1].rows != self._writer.rows:
            numbers = [n for n, shard in enumerate(self._shards) if shard.rows == self._writer.rows]
            if numbers:
                self._shards[numbers[0]].seen += records.nbytes
                return numbers[0]
            self._shards.append(RowShard(self._writer.rows))
        self._shards[-1].seen += records.nbytes
        return len(self._shards) - 1

    def _files(self, suffix: str) -> list[Path]:
        """Files of pairs by age."""
        suffixes = (".rows", ".index") if suffix == "*" else (suffix,)
        return sorted(path for path in self.folder.glob("*-*") if path.suffix in suffixes)

    def _describe(self) -> None:
        """Folder and `meta.json`, unless they are there."""
        path = self.folder / STORE_META
        if path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, [json.dumps(self.meta, indent=2).encode()])
        except OSError as error:
            raise refused(path, error) from error


def digest_of(*parts: bytes | memoryview) -> bytes:
    """A key's 16 bytes: blake2b of the parts, one after the other."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def folder_for(root: Path, description: Mapping[str, Any]) -> Path:
    """Where rows of a kind lie in a cache: in a folder named after what they are (`Store`'s `meta`)."""
    return root / hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def read_meta(folder: Path) -> dict[str, Any]:
    """What the rows in a store's folder are. Raises `UserError` if its `meta.json` is damaged."""
    try:
        meta: dict[str, Any] = json.loads((folder / STORE_META).read_text(encoding="utf-8"))
        DTYPES[meta["dtype"]], tuple(meta["shape"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / STORE_META}: damaged; remove the folder, it will be built anew") from None
    return meta
