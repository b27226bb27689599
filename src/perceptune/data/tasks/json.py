"""The user's own data: one JSON document, whose rows have the keys of task `jsonl`.

    [{"image": "images/1.jpg", "prompt": "What animal is this?", "targets": ["a cat", "cat"]}]
    {"data": [{"image": "images/1.jpg", ...}]}
    {"7": {"image": "images/1.jpg", ...}}

A list of rows, an object with one such list (`rows_key` chooses one of several), or an object of rows by id. Keys may
have other names (`image_key`, `prompt_key`, `target_key`, ...); those without a meaning become the sample's `meta`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from perceptune.data.json_stream import JSONStream
from perceptune.data.records import Record, json_type
from perceptune.data.tasks.base import ColumnOptions, Converted, plain
from perceptune.errors import UserError, nearest

_LINES = "a file with one object a line is read by task `jsonl`"


class JSONDocument(Converted):
    """JSON documents; splits are the given files, plain or gzipped. One row at a time is in memory."""

    class Options(ColumnOptions, Converted.Options):
        """Options of rows, the names of their keys, and their place in the document."""

        rows_key: str | None = Field(None, description="key of the rows in the document; None = the only list of rows")

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        with _opened(path) as stream:
            is_list = stream.peek() == "["
            key = self._options.rows_key
            if is_list and key is not None:
                raise UserError(f"{path}: a list of rows, which has no key `{key}`: leave `rows_key` out")
            if is_list:
                yield from self._listed(stream)
                stream.end()
                return
        key = _key_of_rows(path, key)
        with _opened(path) as stream:
            if key is None:
                yield from self._by_id(stream)
                return
            stream.take("{")
            for name in stream.keys():  # noqa: SIM118
                if name != key:
                    _skip(stream)
                elif stream.peek() == "[":
                    yield from self._listed(stream)
                else:
                    yield from self._by_id(stream)

    def _listed(self, stream: JSONStream) -> Iterator[Record]:
        stream.take("[")
        for number, (line, value) in enumerate(stream.items(), 1):
            yield _row(f"{line}, row {number}", value)

    def _by_id(self, stream: JSONStream) -> Iterator[Record]:
        stream.take("{")
        for name in stream.keys():  # noqa: SIM118
            where = f"{stream.address}, row `{name}`"
            row = _row(where, stream.value(where))
            yield row._replace(values={self._columns.id: name, **row.values})


TASK = JSONDocument


@contextmanager
def _opened(path: Path) -> Iterator[JSONStream]:
    with plain(path).open("rb") as file:
        yield JSONStream(file, str(path))


def _row(where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {json_type(value)}, not an object")
    return Record(where, value, ())


def _key_of_rows(path: Path, wanted: str | None) -> str | None:
    """Return the key of the rows in an object; None if the object itself holds rows by id."""
    with _opened(path) as stream:
        stream.take("{[")
        kinds = {key: _skip(stream) for key in stream.keys()}  # noqa: SIM118
        if stream.peek() == "{":
            raise UserError(f"{path}, line {stream.line}: a second object follows the first: {_LINES}")
        stream.end()
    if wanted is not None:
        if wanted not in kinds:
            raise UserError(f"{path}: `rows_key`: no key `{wanted}`{nearest(wanted, kinds)}")
        if kinds[wanted] not in ("rows", "rows by id", "an empty list"):
            raise UserError(f"{path}: `rows_key`: `{wanted}` holds {kinds[wanted]}, not rows")
        return wanted
    lists = [key for key, kind in kinds.items() if kind == "rows"] or [
        key for key, kind in kinds.items() if kind == "an empty list"
    ]
    if len(lists) > 1:
        several = ", ".join(f"`{key}`" for key in lists[:10])
        raise UserError(f"{path}: rows could be those at {several}: choose by `rows_key`")
    if lists:
        return lists[0]
    if len(kinds) == 1 and "rows by id" in kinds.values():
        return next(iter(kinds))
    if kinds and not set(kinds.values()) <= {"an object", "rows by id"}:
        found = ", ".join(f"`{key}` ({kind})" for key, kind in [*kinds.items()][:10])
        raise UserError(f"{path}: no list of rows and no rows by id, but an object with {found}; {_LINES}")
    return None


def _skip(stream: JSONStream) -> str:
    """Read a value, of which one item at a time is in memory; return what it is."""
    where = f"{stream.address}, line {stream.line}"
    opened = stream.peek()
    if not opened or opened not in "[{":
        return json_type(stream.value(where))
    stream.take(opened)
    is_list = opened == "["
    values = (stream.value(where) for _ in stream.keys())  # noqa: SIM118
    items = (value for _, value in stream.items()) if is_list else values
    count = objects = 0
    for item in items:
        count, objects = count + 1, objects + isinstance(item, dict)
    if is_list:
        return "an empty list" if not count else "rows" if objects else "a list"
    return "rows by id" if 0 < count == objects else "an object"
