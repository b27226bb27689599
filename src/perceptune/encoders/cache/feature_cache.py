"""Encoder features, computed once for each medium.

Features are computed in groups that depend only on the list of media, not on which features exist already: a build
that was killed and restarted gives the same bits as an uninterrupted one.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptune.config.schema import CacheConfig
from perceptune.data.media.source import MediaError, identity
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.media_loader import LoadedMedia, MediaLoader, MediaView, prefetched_map
from perceptune.types import Medium
from perceptune.utils.downloads import cache_dir
from perceptune.utils.row_store.cache import DiskCache, InMemoryStore
from perceptune.utils.row_store.store import DTYPES, digest_of, folder_for
from perceptune.utils.run_log import progress
from perceptune.utils.tensors import move

OnBroken = Callable[[Medium, MediaError], None]

GROUP = 16  # number of media encoded together; the bits of the features depend on it
VERSION = 2  # increase it when the features of the same encoder and media change
_HASHES = {"kind": "hashes of media", "dtype": "uint8", "shape": [16]}
_HASHES_MB = 64  # memory for hashes if the cache cannot be written


class FeatureStore:
    """Encoder features of media, kept on disk or in memory according to the recipe's `cache`.

    On disk the key of a row is the hash of the medium's content. A file's hash is stored by its path, size and times,
    so a later run reads only files that have changed.
    """

    def __init__(
        self, encoder: Encoder, levels: Sequence[int], tokens: str, cache: CacheConfig | None = None, *,
        megabytes: int = 2048, views: int = 0,
    ) -> None:  # fmt: skip
        self.encoder, self.levels, self.tokens = encoder, list(levels), tokens
        self.cache, self.views = cache or CacheConfig(), views
        self.kept_levels = self.levels
        if tokens == "cls" and self.cache.levels is not None and self.cache.features != "off":  # for other methods, too
            last = range(max(0, encoder.n_layers - self.cache.levels), encoder.n_layers)
            self.kept_levels = sorted({*self.levels, *last})
        self._megabytes, self._settings = megabytes, json.dumps(encoder.augmentation()).encode()
        self.loader = MediaLoader(encoder, self._key_of, self._missing)
        self._lock = threading.RLock()  # `get_cached` may run in another thread than the writing `precompute` and `get`

    def precompute(
        self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None, *, label: str = "features",
        rank: int = 0, world: int = 1, on_broken: OnBroken | None = None, whole_groups: bool = False,
    ) -> int:  # fmt: skip
        """Compute and store missing features; return their number. `whole_groups`: none of an incomplete last group.

        `view_seeds` select an augmented view of each medium, if the store has views. Each of `world` processes with the
        same list computes every `world`-th group, or all groups if its rows are kept in memory, which the others cannot
        read. `on_broken` is called for a broken medium; without it `MediaError` is raised.
        """
        items = [*dict.fromkeys(self._views_of(media, view_seeds))]
        del items[len(items) // GROUP * GROUP if whole_groups else len(items) :]
        rank, world = (rank, world) if self._kept.is_shared else (0, 1)
        todo = self._lacking(items, rank, world) if not self._full else []
        count, start = 0, time.monotonic()
        if todo:
            with progress(sum(map(len, todo)), label) as bar:
                for loaded, rows in self._build(todo, on_broken):
                    count += len(rows)
                    bar.advance(len(loaded), f"{count / (time.monotonic() - start):.0f}/s")
                    if self._full:
                        break  # the rest is computed at each use
        return count

    def count_missing(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None) -> int:
        """Return the number of media in groups that `precompute` would compute."""
        return 0 if self._full else sum(map(len, self._lacking([*dict.fromkeys(self._views_of(media, view_seeds))])))

    def get(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None) -> Tensor:
        """Return (N, n_levels, T, dim) float32 for N media; compute missing features. Raises `MediaError`."""
        items = self._views_of(media, view_seeds)
        distinct = list(dict.fromkeys(items))
        rows, fresh, keys = self._read(distinct), dict[MediaView, Tensor](), dict[MediaView, bytes]()
        while len(rows) < len(distinct):  # a second pass only if a row is found to be damaged
            for loaded, computed in self._build(self._lacking(distinct), None):
                keys |= {one.item: one.key for one in loaded}
                fresh |= {one.item: computed[one.key] for one in loaded if one.key in computed}
            rows = self._read(distinct, keys) | fresh
        return self._chosen([rows[item] for item in items])

    def get_cached(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None) -> Tensor | None:
        """Return the same as `get` if all features are stored, else None. Computes nothing. Thread-safe."""
        items = self._views_of(media, view_seeds)
        with self._lock:
            rows = self._read(items)
            if len(rows) < len(set(items)):
                self._kept.refresh()  # another process may have computed them
                rows = self._read(items)
        return self._chosen([rows[item] for item in items]) if len(rows) == len(set(items)) else None

    def _chosen(self, rows: Sequence[Tensor]) -> Tensor:
        """Stack rows and select the requested levels from those that are kept."""
        every = torch.stack(list(rows))
        if self.kept_levels != self.levels:
            every = every[:, [self.kept_levels.index(level) for level in self.levels]]
        return every.float()

    @cached_property
    def description(self) -> dict[str, Any]:
        """All settings that a row depends on, apart from its medium and view."""
        return {
            "kind": "features", "version": VERSION, "encoder": self.encoder.fingerprint, "levels": self.kept_levels,
            "preprocessing": self.encoder.preprocessing(), "tokens": self.tokens, "dtype": self.cache.dtype,
            "shape": [len(self.kept_levels), self.encoder.count_tokens(self.tokens), self.encoder.dim],
        }  # fmt: skip

    @cached_property
    def folder(self) -> Path:
        """Folder of the rows that are kept on disk."""
        return folder_for(cache_folder(self.cache.dir), self.description)

    @cached_property
    def _kept(self) -> DiskCache | InMemoryStore[bytes]:
        if self.cache.features == "disk":
            return DiskCache(self.folder, self.description, self._megabytes)
        return InMemoryStore(self._megabytes if self.cache.features == "memory" else 0)

    @property
    def _full(self) -> bool:
        return self._kept.full

    @cached_property
    def _hashes(self) -> DiskCache | None:
        """Hashes of contents by identity; None in memory, where the identity itself is the key."""
        if self.cache.features != "disk":
            return None
        return DiskCache(cache_folder(self.cache.dir) / "hashes", _HASHES, _HASHES_MB)

    def _views_of(self, media: Sequence[Medium], view_seeds: Sequence[int] | None) -> list[MediaView]:
        if view_seeds is None or not self.views:
            return [MediaView(medium) for medium in media]
        return [MediaView(medium, 1 + draw % self.views) for medium, draw in zip(media, view_seeds, strict=True)]

    def _keys(self, items: Sequence[MediaView]) -> dict[MediaView, bytes]:
        """Return the row keys of media whose content hash is known."""
        hashes = [digest_of(identity(item.medium).encode()) for item in items]
        if self._hashes is None:
            return {item: self._key(one, item.view) for item, one in zip(items, hashes, strict=True)}
        if self._hashes.missing(hashes):
            self._hashes.refresh()
        known = zip(items, self._hashes.read(hashes), strict=True)
        return {item: self._key(row.numpy().tobytes(), item.view) for item, row in known if row is not None}

    def _key_of(self, one: LoadedMedia) -> bytes:
        return self._key(one.digest if self._hashes is not None else digest_of(one.identity.encode()), one.item.view)

    def _key(self, digest: bytes, view: int) -> bytes:
        return digest_of(digest, self._settings, view.to_bytes(4, "little")) if view else digest

    def _missing(self, keys: Sequence[bytes]) -> list[bytes]:
        return self._kept.missing(keys)

    def _read(
        self, items: Sequence[MediaView], keys: Mapping[MediaView, bytes] | None = None
    ) -> dict[MediaView, Tensor]:
        """Return the rows that exist."""
        with self._lock:
            keys = {**self._keys(items), **(keys or {})}
            rows = zip(keys, self._kept.read(list(keys.values())), strict=True)
            return {item: row for item, row in rows if row is not None}

    def _lacking(self, items: Sequence[MediaView], rank: int = 0, world: int = 1) -> list[Sequence[MediaView]]:
        """Return this process's groups with at least one medium whose row is missing or whose key is unknown."""
        with self._lock:
            self._kept.refresh()
            keys = self._keys(items)
            absent = set(self._kept.missing(list(keys.values())))
        groups = [items[start : start + GROUP] for start in range(rank * GROUP, len(items), world * GROUP)]
        return [group for group in groups if any(item not in keys or keys[item] in absent for item in group)]

    def _build(
        self, groups: Sequence[Sequence[MediaView]], on_broken: OnBroken | None
    ) -> Iterator[tuple[list[LoadedMedia], dict[bytes, Tensor]]]:
        """Compute and store missing rows; yield each group with its new rows by key."""
        for loaded in prefetched_map(groups, self.loader.load):
            rows = self._encode([one for one in loaded if one.pixels is not None])
            with self._lock:
                absent = self._kept.missing(list(rows))
                self._kept.append(absent, [rows[key] for key in absent])
                self._remember(loaded)
            for one in loaded:
                if one.error is not None and on_broken is None:
                    raise one.error
                if one.error is not None and on_broken is not None:
                    on_broken(one.item.medium, one.error)
            yield loaded, {key: rows[key] for key in absent}

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, loaded: Sequence[LoadedMedia]) -> dict[bytes, Tensor]:
        if not loaded:
            return {}
        rows = self._rows_of(torch.stack([one.pixels for one in loaded if one.pixels is not None])).cpu()
        return {one.key: row for one, row in zip(loaded, rows, strict=True)}

    def _rows_of(self, pixels: Tensor) -> Tensor:
        device = next(self.encoder.parameters()).device
        return self.encoder(move(pixels, device), self.kept_levels, self.tokens).to(DTYPES[self.cache.dtype])

    def encode_loaded(self, pixels: Tensor) -> Tensor:
        """Return what `get` does for N media that `encoder.load` has loaded, stacked; nothing is read or stored."""
        with torch.no_grad():
            return self._chosen(list(self._rows_of(pixels.float())))

    def _remember(self, loaded: Sequence[LoadedMedia]) -> None:
        """Store the hashes of media that did not change while they were read."""
        if self._hashes is not None:
            steady = [one for one in loaded if one.digest and identity(one.item.medium) == one.identity]
            digests = {digest_of(one.identity.encode()): one.digest for one in steady}
            new = self._hashes.missing(list(digests))
            self._hashes.append(new, [torch.tensor(list(digests[key]), dtype=torch.uint8) for key in new])


def cache_folder(given: Path | None) -> Path:
    """Return the folder of all feature caches: `given`, else `features` in perceptune's cache folder."""
    return cache_dir() / "features" if given is None else given.expanduser().absolute()
