"""Files of users: plain or gzipped, and errors with the nearest name for missing ones."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from perceptune.data import storage
from perceptune.data.records import wide_encoding
from perceptune.errors import UserError
from perceptune.types import Sample
from perceptune.utils.paths import absence

GZIPPED = b"\x1f\x8b"  # first bytes of a gzipped file


def plain(path: Path) -> Path:
    """Return the file itself, or a copy in the cache: decompressed, whatever its name, and recoded to UTF-8.

    Raises `UserError` if it cannot be read.
    """
    if problem := missing(path):
        raise UserError(f"cannot read {path}: {problem}")
    name, found = str(path.absolute()), path
    start = _start(path)
    if start.startswith(GZIPPED):
        found = storage.derived(f"unzipped {name}", storage.version(name)[1], lambda: _unzipped(path))
        start = _start(found)
    encoding = wide_encoding(start)
    if encoding is None:
        return found
    unzipped = found
    return storage.derived(f"UTF-8 of {name}", storage.version(name)[1], lambda: _recoded(unzipped, path, encoding))


@contextmanager
def reading(what: Path | str, *errors: type[Exception]) -> Iterator[None]:
    """Raise `UserError` for `errors` and `OSError` inside the block, which reads `what`."""
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except caught as error:
        raise UserError(f"cannot read {what}: {error}") from error


def _start(path: Path) -> bytes:
    with reading(path), path.open("rb") as file:
        return file.read(4)


def _recoded(file: Path, named: Path, encoding: str) -> Iterator[bytes]:
    with reading(f"{named} as {encoding.upper()}", UnicodeError), file.open(encoding=encoding, newline="") as text:
        while chunk := text.read(2**20):
            yield chunk.encode()


def _unzipped(path: Path) -> Iterator[bytes]:
    with reading(path, EOFError, zlib.error), gzip.open(path) as file:
        while chunk := file.read(2**20):
            yield chunk


class Absent:
    """A count of missing media. Existing ones are not decoded here."""

    def __init__(self) -> None:
        self._is_file = lru_cache(maxsize=10_000)(is_file)  # adjacent samples often share an image
        self._hashes: set[int] = set()
        self.first: tuple[int, str, Path] | None = None  # index of a sample, modality, file

    def __len__(self) -> int:
        return len(self._hashes)

    def look(self, index: int, sample: Sample) -> bool:
        """Count missing media of the next sample; return whether all exist."""
        whole = True
        for key, medium in sample.iter_media():
            if isinstance(medium, Path) and not self._is_file(medium):
                self.first = self.first or (index, key, medium)
                self._hashes.add(hash(medium))
                whole = False
        return whole

    def others(self) -> str:
        """Return the number of further missing media, for a message."""
        return f" (and {len(self) - 1} more files are missing)" if len(self) > 1 else ""


def missing(path: Path) -> str:
    """Return why `path` is not a file, with the nearest existing name; empty if it is one."""
    if is_file(path):
        return ""
    try:
        return "it is a folder" if path.is_dir() else absence(path).why()
    except OSError as error:
        return error.strerror or str(error)


def is_file(path: Path) -> bool:
    """Return whether a file of this name exists; False for an invalid name."""
    try:
        return path.is_file()
    except OSError:  # such as for a name that is too long or a folder without permission
        return False
