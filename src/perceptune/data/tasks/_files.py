"""Files as users have them: plain or gzipped, there or not, with the nearest name where they are not."""

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

GZIPPED = b"\x1f\x8b"  # how such a file begins


def plain(path: Path) -> Path:
    """The file itself, or what is gzipped in it, whatever its name; UTF-16 and UTF-32 become UTF-8.

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
    """Raise `UserError` for `errors`, and those of the system, while this is read."""
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
    """Media that are not there. Decoding those that are is left to the moment they are needed."""

    def __init__(self) -> None:
        self._is_file = lru_cache(maxsize=10_000)(is_file)  # neighbours often ask about one image
        self._hashes: set[int] = set()
        self.first: tuple[int, str, Path] | None = None  # index of a sample, modality, file

    def __len__(self) -> int:
        return len(self._hashes)

    def look(self, index: int, sample: Sample) -> bool:
        """Notes which media of the next sample are no files; whether all are."""
        whole = True
        for key, medium in sample.media.items():
            if isinstance(medium, Path) and not self._is_file(medium):
                self.first = self.first or (index, key, medium)
                self._hashes.add(hash(medium))
                whole = False
        return whole

    def others(self) -> str:
        """How many there are beside the first."""
        return f" (and {len(self) - 1} more files are missing)" if len(self) > 1 else ""


def missing(path: Path) -> str:
    """Why `path` is not a file, with the nearest existing name; empty when it is one."""
    if is_file(path):
        return ""
    try:
        return "it is a folder" if path.is_dir() else absence(path).why()
    except OSError as error:
        return error.strerror or str(error)


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; a name that cannot be is none."""
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder without permission
        return False
