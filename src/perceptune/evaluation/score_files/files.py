"""Rows of files in any layout: JSON objects in lines, a list, a document or a mapping; or a table.

A file may be gzipped, in UTF-16, and begin with a byte order mark. JSON is streamed, so that memory holds one row at a
time; a row longer than `MAX_LINE` is rejected without being read completely. A table is read into memory.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from perceptune.data.json_stream import JSONStream, too_long
from perceptune.data.records import MAX_LINE, Record, json_type, parse, wide_encoding
from perceptune.data.storage import opened
from perceptune.data.tabular import decoded, header_of, recognize, table_records
from perceptune.errors import UserError

ID_KEYS = ("id", "question_id", "questionId", "image_id")
EXPECTED = "one object a line, a JSON list of objects, or a table whose first line names its columns"
# Columns whose cells may contain several texts, separated by bars.
_SEVERAL = ("references", "targets", "captions", "answers", "direct_answers", "choices")
_COLUMNS = ("prediction", "answer", "caption", "answer_type", *_SEVERAL)
# A document of COCO or VQA has its rows in one of these lists, ...
_LISTS = ("annotations", "data")
# ... and begins with one of these keys.
_DOCUMENT = {
    *("info", "images", "annotations", "licenses", "license", "type", "data", "data_type", "data_subtype", "task_type"),
    *("dataset_type", "dataset_name", "dataset_version", "questions"),
}
_FIRST = re.compile(r'\{\s*(?:"((?:[^"\\]|\\.)*)"\s*:\s*(.)?)?', re.DOTALL)


def entries(address: str, say: Callable[[str], None] = lambda note: None) -> Iterator[Record]:
    """Yield the objects of a file in its order. Raises `UserError` for another kind of file, and if there are none.

    `say` receives notes on the recognised format of a table.
    """
    found = False
    with _plain(address) as file:
        for entry in _entries(file, address, say):
            found = True
            yield entry
    if not found:
        raise UserError(f"{address} holds no rows")


def _entries(file: BinaryIO, address: str, say: Callable[[str], None]) -> Iterator[Record]:
    number, start = 1, file.readline(MAX_LINE + 1).removeprefix(b"\xef\xbb\xbf")
    blank: list[bytes] = []
    while start and not start.strip():
        blank.append(start)
        number, start = number + 1, file.readline(MAX_LINE + 1)
    if start.lstrip()[:1] == b"[":
        stream = JSONStream(file, address, start, number)
        stream.take("[")
        yield from (_entry(where, value) for where, value in stream.items("index"))
        stream.end()
    elif start.lstrip()[:1] not in (b"{", b""):
        if len(start) > MAX_LINE:
            raise too_long(f"{address}, line {number}")
        yield from _table([*blank, start, *file], address, number, say)
    elif _begins_document(start):
        yield from _document(JSONStream(file, address, start, number))
    else:
        yield from _rows(file, address, number, start)


def _table(lines: Sequence[bytes], address: str, number: int, say: Callable[[str], None]) -> Iterator[Record]:
    """Yield the rows of a table. Raises `UserError` for text that is neither JSON nor a table."""
    known = (*ID_KEYS, *_COLUMNS)
    default = "\t" if ".tsv" in address else ","
    dialect = recognize(lambda: lines, address, default=default, known=known)
    if not {*header_of(decoded(lines, address, dialect.encoding), address, dialect, known)} & {*known}:
        raise UserError(f"{address}, line {number}: neither JSON nor a table with a column `id`; expected {EXPECTED}")
    if dialect.notes:
        say(f"{address}: {', '.join(dialect.notes)}")
    for record in table_records(decoded(lines, address, dialect.encoding), address, dialect, known=known):
        yield Record(record.where, {key: _cell(record, key) for key in record.values}, ())


def _cell(record: Record, key: str) -> Any:
    text = record.values[key]
    if key not in _SEVERAL:
        return text
    found = record.items(key, text)
    return [part.strip() for part in text.split("|")] if found == [text] else found


def _rows(file: BinaryIO, address: str, number: int, line: bytes) -> Iterator[Record]:
    """Yield one object per line, from the first line that is not blank."""
    while line:
        where = f"{address}, line {number}"
        if len(line) > MAX_LINE:
            raise too_long(where)
        values = parse(line, where, EXPECTED)
        if values is not None:
            yield Record(where, values, ())
        number, line = number + 1, file.readline(MAX_LINE + 1)


def _document(stream: JSONStream) -> Iterator[Record]:
    """Yield the rows in a document's list, or the objects of a mapping from ids."""
    stream.take("{")
    mapping, rows = True, 0
    for index, key in enumerate(stream.keys()):
        if index == 0:
            mapping = key not in _DOCUMENT
        if mapping:
            where = f"{stream.address}, `{key}`"
            entry = _entry(where, stream.value(where))
            yield entry._replace(values={"id": key, **entry.values})
        elif stream.peek() == "[":
            stream.take("[")
            for where, value in stream.items(f"`{key}` index"):
                if key in _LISTS:
                    rows += 1
                    yield _entry(where, value)
        else:
            stream.value(f"{stream.address}, `{key}`")
    stream.end()
    if not mapping and not rows:
        raise UserError(f"{stream.address} holds no rows: its list `annotations` or `data` is absent or empty")


def _begins_document(start: bytes) -> bool:
    """Return whether a file is one object, not one per line, judging by its first line or the part that was read."""
    text = start.decode("utf-8", errors="replace").strip()
    try:
        values = json.loads(text) if len(start) <= MAX_LINE else None
    except (ValueError, RecursionError):
        values = None
    if values is not None:
        if not isinstance(values, dict) or not values or values.keys() & set(ID_KEYS):
            return False
        return next(iter(values)) in _DOCUMENT or all(isinstance(value, dict) for value in values.values())
    match = _FIRST.match(text)
    if match is None:
        return False
    key, value = match.groups()
    return key in _DOCUMENT or value == "{" or (key is None and match.end() == len(text))


def _entry(where: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {json_type(value)}, not an object")
    return Record(where, value, ())


@contextmanager
def _plain(address: str) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its content is gzipped."""
    with opened(address) as raw:
        buffered = io.BufferedReader(cast(io.RawIOBase, raw))
        if buffered.peek(2)[:2] != b"\x1f\x8b":
            yield _as_utf8(buffered, address)
            return
        try:
            with gzip.GzipFile(fileobj=buffered) as file:
                yield _as_utf8(io.BufferedReader(cast(io.RawIOBase, file)), address)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"cannot read {address}: {error}") from error


def _as_utf8(file: io.BufferedReader[Any], address: str) -> BinaryIO:
    """Return the file itself, or its content recoded in memory if it is in UTF-16 or UTF-32."""
    encoding = wide_encoding(file.peek(4)[:4])
    if encoding is None:
        return cast(BinaryIO, file)
    try:
        return io.BytesIO(file.read().decode(encoding).encode())
    except UnicodeError as error:
        raise UserError(f"cannot read {address} as {encoding.upper()}: {error}") from error
