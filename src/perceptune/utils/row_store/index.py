"""Where rows lie, by key: 36 bytes a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perceptune.utils.row_store.files import KEY_BYTES, Records

PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("row_crc", "<u4"), ("shard", "<u4")])
NOWHERE = 2**32 - 1  # the `shard` of a row that is not there
_TAIL = 1024  # rows kept in a dictionary before they are merged into the arrays
Places = NDArray[np.void]


def places_of(records: Records, shard: int) -> Places:
    """Places of the records of one pair of files."""
    places = np.zeros(len(records), PLACE)
    for name in ("offset", "length", "row_crc"):
        places[name] = records[name]
    places["shard"] = shard
    return places


class Index:
    """Where rows lie: arrays sorted by key, of equal keys the newest last, and a short tail of the newest.

    `find` may be called from other threads while one thread adds: rows only move from the tail into the arrays.
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
        """The newest place of each key; its shard is `NOWHERE` where there is none."""
        newest = [self.tail.get(key) for key in keys]  # before the arrays, see above
        found = self._find_sorted(keys)
        for i, place in enumerate(newest):
            if place is not None:
                found[i] = place
        return found

    def add(self, keys: NDArray[np.bytes_], places: Places) -> None:
        """Places newer than all before them, in order of their age."""
        order = np.argsort(keys, kind="stable")
        old_keys, old_places = self.sorted
        at = np.searchsorted(old_keys, keys[order], side="right")
        self.sorted = (np.insert(old_keys, at, keys[order]), np.insert(old_places, at, places[order]))

    def add_few(self, keys: Sequence[bytes], places: Places) -> None:
        """The same for a few rows, without moving the arrays each time."""
        for key, place in zip(keys, places, strict=True):
            self.tail[key] = place.copy()
        if len(self.tail) >= _TAIL:
            self.add(np.array(list(self.tail), f"S{KEY_BYTES}"), np.array(list(self.tail.values()), PLACE))
            self.tail = {}

    def drop(self, keys: Sequence[bytes], places: Places) -> None:
        """Forgets these places, as `find` gave them; an older place of the same key comes to light."""
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
