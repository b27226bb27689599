"""The first rows of a file, whatever its type, before it is known what they mean."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from perceptune.data.json_stream import JSONStream
from perceptune.data.lazy_rows import read_lines
from perceptune.data.media.suffixes import suffix_of
from perceptune.data.recognition.columns import KNOWN
from perceptune.data.records import RowError, parse
from perceptune.data.tasks.base import TableOptions, dialect_of, json_objects, plain, table_rows
from perceptune.errors import UserError

FIRST = 200  # rows that are looked at

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The first rows of a file, and the reader of its type."""

    what: str  # such as `a JSON list`
    reader: str
    rows: list[Row]
    options: Row = field(default_factory=dict)  # reader options that its form requires
    lists: dict[str, list[Row]] = field(default_factory=dict)  # of a JSON object: key -> first rows of a list
    texts: dict[str, str] = field(default_factory=dict)  # of a JSON object: its texts beside the rows


def json_rows_of(path: Path) -> Rows | None:
    """Return the first rows of a JSON file: lines, a list, an object of rows by id, or an object with lists of rows.

    Returns None for a file that is not JSON. Raises `UserError` for a damaged one.
    """
    with plain(path).open("rb") as file:
        stream = JSONStream(file, str(path))
        start = stream.peek()
        if start == "[":
            return Rows("a JSON list", "json", [row.values for row in islice(json_objects(path), FIRST)])
        if start != "{":
            return None
        if _has_a_row_a_line(path):
            return Rows("JSON lines", "jsonl", _lines(path))
        return _document(stream)


def _has_a_row_a_line(path: Path) -> bool:
    """Return whether the first line with text is a whole object, and not a document that holds rows itself."""
    with plain(path).open("rb") as file:
        lines = (line for line, _ in islice(read_lines(file), 1000) if line.strip())
        first, second = next(lines, b""), next(lines, b"")
    try:
        values = parse(first, str(path), "an object", "utf-8-sig")
    except RowError:  # one broken line, of many if the name does not tell
        return first.strip() != b"{" and (_are_lines(path) or second.lstrip().startswith(b"{"))
    return bool(second.strip()) or not _holds_rows(values or {})


def _are_lines(path: Path) -> bool:
    return suffix_of(path.name.removesuffix(".gz")) in ("jsonl", "ndjson")


def _holds_rows(values: Row) -> bool:
    """Return whether an object is a document: one of its lists holds objects, or all its values are objects."""
    if values.keys() & _TURNS:
        return False
    lists = [value for value in values.values() if isinstance(value, list)]
    return any(rows and isinstance(rows[0], dict) for rows in lists) or (
        bool(values) and all(isinstance(value, dict) for value in values.values())
    )


_TURNS = {"messages", "conversations", "conversation", "dialog", "prompt", "completion", "query"}


def _lines(path: Path) -> list[Row]:
    """Return the first rows; a broken line is left to the reader, which names it, if there are others."""
    found, broken = [], None
    with plain(path).open("rb") as file:
        for number, (line, _) in enumerate(islice(read_lines(file), FIRST), 1):
            try:
                values = parse(line, f"{path}, line {number}", "an object", "utf-8-sig")
            except RowError as error:
                broken = broken or UserError(str(error))  # the error itself would keep the line
                continue
            if values is not None:
                found.append(values)
    if broken is not None and not found:
        raise broken
    return found


def _document(stream: JSONStream) -> Rows:
    """Return the first rows of each list of a JSON object, or its values if they are objects themselves."""
    stream.take("{")
    lists: dict[str, list[Row]] = {}
    by_id: list[Row] = []
    texts: dict[str, str] = {}
    for key in stream.keys():  # noqa: SIM118 - it reads the stream
        if stream.peek() == "[":
            stream.take("[")
            values = list(_first(stream.items(key)))
            if values and all(isinstance(value, dict) for value in values):
                lists[key] = values
            continue
        value = stream.value(f"{stream.address}, `{key}`")
        if isinstance(value, dict) and len(by_id) < FIRST:
            by_id.append({"id": key, **value})
        elif isinstance(value, str):
            texts[key] = value
    if len(lists) == 1:
        [(key, rows)] = lists.items()
        return Rows(f"a JSON file with rows at `{key}`", "json", rows, {"rows_key": key}, lists, texts)
    return Rows("a JSON object of rows by id", "json", [] if lists else by_id, {}, lists, texts)


def _first(items: Iterator[tuple[str, Any]]) -> Iterator[Any]:
    """Yield the first values; parse the others without keeping them."""
    for _, value in islice(items, FIRST):
        yield value
    for _ in items:
        pass


def table_rows_of(path: Path, *, delimiter: str | None = None, encoding: str | None = None) -> Rows:
    """Return the first rows of a text table. Raises `UserError` for one that cannot be read."""
    dialect = dialect_of(path, TableOptions(delimiter=delimiter, encoding=encoding), known=KNOWN)
    rows = [row.values for row in islice(table_rows(path, dialect=dialect), FIRST)]
    if not rows:
        raise UserError(f"{path} holds no rows: a table has a line with the names of its columns, and one line per row")
    return Rows("a TSV table" if dialect.delimiter == "\t" else "a CSV table", "csv", rows)


def _is_blank(path: Path) -> bool:
    with plain(path).open("rb") as file:
        return not file.read(2**16).strip()


def file_rows(path: Path, given: Mapping[str, Any]) -> Rows:
    """Return the first rows of a file of text."""
    suffix = suffix_of(path.name.removesuffix(".gz"))
    found = None if suffix in ("csv", "tsv") else json_rows_of(path)
    if found is None and suffix in ("json", "jsonl", "ndjson") and _is_blank(path):
        raise UserError(f"{path} holds no rows")
    return found or table_rows_of(path, **{key: given[key] for key in ("delimiter", "encoding") if key in given})
