"""Files too large for memory: JSON lists object by object, and what a reader makes of a file, kept row by row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from perceptune.data import storage
from perceptune.data.lazy_rows import lines_of
from perceptune.data.records import DECODER, MAX_LINE, Record, json_type, parse
from perceptune.data.tasks._files import plain
from perceptune.errors import UserError

_FORMAT = 2  # raise it when the rows that readers make change
_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def json_objects(path: Path) -> Iterator[Record]:
    """The objects of a JSON list, or of a file with one object a line: whichever its first character begins.

    Plain or gzipped, one at a time. Raises `UserError` naming the file and the line of what is wrong.
    """
    with plain(path).open("rb") as file:
        start = file.read(2**16).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        if start.startswith(b"["):
            yield from _ListReader(file, path).items()
            return
        for line, text in enumerate(lines_of(file, str(path)), 1):
            where = f"{path}, line {line}"
            encoding = "utf-8-sig" if line == 1 else "utf-8"
            values = parse(text, where, "a list of objects, or one object a line", encoding)
            if values is not None:
                yield Record(where, values, ())


def parquet_rows(path: Path) -> Iterator[Record]:
    """The rows of a parquet file, counted from 1. Raises `UserError` without pyarrow, and for a damaged file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: parquet needs more packages: run `pip install 'perceptune[data]'`") from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", values, ())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def kept(sources: Sequence[Path], how: object, rows: Callable[[], Iterable[Record]]) -> Path:
    """A file with a line `["where", {...}]` for each of the rows made of `sources`; `how` tells what made them.

    It lies in the cache and is made anew when a source has changed.
    """
    names = [str(source.absolute()) for source in sources]
    key = f"rows {json.dumps([_FORMAT, names, how], default=str)}"
    return storage.derived(key, "|".join(storage.version(name)[1] for name in names), lambda: map(_line, rows()))


def _line(row: Record) -> bytes:
    try:
        return json.dumps([row.where, row.values], separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:  # bytes or a date out of a parquet file
        raise row.error(f"a value that JSON cannot hold ({error})") from error


class _ListReader:
    """The items of a JSON list, of which one at a time is in memory."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0  # what was read, and how much of it is done
        self._line = 1  # in which that ends
        self._ended = False

    def items(self) -> Iterator[Record]:
        self._take("[")
        while self._next() != "]":
            where = f"{self._path}, line {self._line}"
            value = self._value(where)
            if not isinstance(value, dict):
                raise UserError(f"{where}: {json_type(value)} in the list, not an object")
            yield Record(where, value, ())
            if self._take(",]") == "]":
                return

    def _value(self, where: str) -> object:
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._at > MAX_LINE:
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise UserError(f"{where}: the item that begins here is invalid JSON: {reason}") from error
                self._more()  # cut off, perhaps
            else:
                self._advance(end)
                return value

    def _take(self, wanted: str) -> str:
        found = self._next()
        if not found or found not in wanted:
            names = " or ".join(f"`{character}`" for character in wanted)
            got = f"`{found}`" if found else "the end of the file"
            raise UserError(f"{self._path}, line {self._line}: invalid JSON: expected {names}, got {got}")
        self._advance(self._at + 1)
        return found

    def _next(self) -> str:
        """The next character that is no white space, not taken; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def _advance(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> None:
        """Reads at least as much again as there is, so that a long item is not tried too often."""
        rest = self._text[self._at :]
        data = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not data
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + rest.count("\n") + error.object[: error.start].count(b"\n")
            raise UserError(f"{self._path}, line {line}: not UTF-8 ({error.reason})") from error
        self._text, self._at = rest + more, 0
