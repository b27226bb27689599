"""Caches of computed rows: in memory, or on disk with memory as the fallback if the folder cannot be written."""

import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from perceptune.errors import NOT_WRITABLE, NotWritableError
from perceptune.utils.row_store.store import Store
from perceptune.utils.run_log import is_main_process

Key = TypeVar("Key", bound=Hashable)


class InMemoryStore(Generic[Key]):
    """Tensors by key within a memory budget. A full store keeps its tensors and ignores new ones."""

    is_shared = False  # whether other processes can read its rows

    def __init__(self, megabytes: int) -> None:
        self.budget = megabytes * 2**20
        self.used = 0
        self.full = megabytes == 0  # whether a tensor did not fit
        self._items: dict[Key, Tensor] = {}

    def __len__(self) -> int:
        return len(self._items)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Return the keys that have no tensor, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._items]

    def read(self, keys: Sequence[Key]) -> list[Tensor | None]:
        """Return the tensor of each key, None if there is none."""
        return [self._items.get(key) for key in keys]

    def append(self, keys: Iterable[Key], tensors: Iterable[Tensor]) -> None:
        """Keep the tensors that fit into the budget."""
        for key, tensor in zip(keys, tensors, strict=True):
            size = tensor.numel() * tensor.element_size()
            if self.used + size <= self.budget:
                self._items[key] = tensor
                self.used += size
            else:
                self.full = True

    def refresh(self) -> None:
        """Do nothing: other processes cannot append (see `Store.refresh`)."""


class DiskCache:
    """A `Store` in `folder`; if that cannot be written, its existing rows are read and new ones are kept in memory.

    A full disk is still an error, because the user can free space; rows written before are kept.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], megabytes: int) -> None:
        self._memory: InMemoryStore[bytes] | None = None
        self._disk: Store | None = None
        self._folder, self._megabytes = folder, megabytes
        try:
            self._disk = Store(folder, meta)
        except OSError as error:  # the folder cannot even be read
            if error.errno not in NOT_WRITABLE:
                raise
            self._use_memory(error.strerror)

    @property
    def is_shared(self) -> bool:
        """Whether other processes can read its rows."""
        return self._memory is None

    @property
    def full(self) -> bool:
        """Whether a row did not fit into memory."""
        return self._memory is not None and self._memory.full

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys that have no row, each once."""
        absent = list(dict.fromkeys(keys)) if self._disk is None else self._disk.missing(keys)
        return absent if self._memory is None else self._memory.missing(absent)

    def read(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return the row of each key, None if there is none."""
        rows: list[Tensor | None] = [None] * len(keys) if self._disk is None else self._disk.read(keys)
        if self._memory is None:
            return rows
        return [new if row is None else row for row, new in zip(rows, self._memory.read(keys), strict=True)]

    def append(self, keys: Sequence[bytes], rows: Sequence[Tensor]) -> None:
        """Append rows. Raises `UserError` if the disk is full."""
        if self._memory is None:
            assert self._disk is not None
            try:
                self._disk.append(keys, rows)
                return
            except NotWritableError as error:
                memory = self._use_memory(error.reason)
        else:
            memory = self._memory
        memory.append(keys, rows)

    def refresh(self) -> None:
        """Read the index of rows that other processes have appended."""
        if self._disk is not None:
            self._disk.refresh()

    def _use_memory(self, reason: str | None) -> InMemoryStore[bytes]:
        note_unwritable(self._folder.parent, reason)
        self._memory = InMemoryStore(self._megabytes)
        return self._memory


@cache  # one note per folder: a run has several caches in it
def note_unwritable(folder: Path, reason: str | None) -> None:
    """Print a note that computed rows are lost at the end."""
    if is_main_process():
        print(
            f"note: `{folder}` cannot be written ({reason}): what is computed stays in memory and is lost at the end; "
            "set PERCEPTUNE_CACHE or `cache.dir` to a folder that can be written",
            file=sys.stderr,
        )
