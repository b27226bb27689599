"""Files too large for memory: streaming of JSON lists, and a cache of converted rows."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from perceptune.data import storage
from perceptune.data.json_stream import JSONStream
from perceptune.data.lazy_rows import lines_of
from perceptune.data.records import Record, json_type, parse
from perceptune.data.tasks._files import plain, reading
from perceptune.errors import UserError

_FORMAT = 3  # increase it when the rows of readers change


def json_objects(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON list, or of a file with one object per line, as its first character shows.

    The file may be gzipped; one object at a time is in memory. Raises `UserError` naming file and line.
    """
    with plain(path).open("rb") as file:
        start = file.read(2**16).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        if start.startswith(b"["):
            yield from _items(JSONStream(file, str(path)))
            return
        for line, text in enumerate(lines_of(file, str(path)), 1):
            where = f"{path}, line {line}"
            encoding = "utf-8-sig" if line == 1 else "utf-8"
            values = parse(text, where, "a list of objects, or one object a line", encoding)
            if values is not None:
                yield Record(where, values, ())


def _items(stream: JSONStream) -> Iterator[Record]:
    stream.take("[")
    for where, value in stream.items():
        if not isinstance(value, dict):
            raise UserError(f"{where}: {json_type(value)} in the list, not an object")
        yield Record(where, value, ())
    stream.end()


def parquet_rows(path: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file, counted from 1. Raises `UserError` without pyarrow and for a damaged file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: parquet needs more packages: run `pip install 'perceptune[data]'`") from error
    with reading(path, pyarrow.ArrowException), parquet.ParquetFile(path) as file:
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
        for number, values in enumerate(rows, 1):
            yield Record(f"{path}, row {number}", values, ())


def kept(sources: Sequence[Path], how: object, rows: Callable[[], Iterable[Record]]) -> Path:
    """Return a cached file with a line `["where", {...}]` for each row of `sources`; `how` identifies the conversion.

    It is written again when a source has changed.
    """
    names = [str(source.absolute()) for source in sources]
    key = f"rows {json.dumps([_FORMAT, names, how], default=str)}"
    return storage.derived(key, "|".join(storage.version(name)[1] for name in names), lambda: map(_line, rows()))


def _line(row: Record) -> bytes:
    try:
        return json.dumps([row.where, row.values], separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:  # such as bytes or a date from a parquet file
        raise row.error(f"a value that JSON cannot hold ({error})") from error
