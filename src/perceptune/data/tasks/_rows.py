"""Rows of published annotation files: lists and objects in a JSON file, text tables.

Byte order marks, CRLF, gzip and UTF-16 are accepted. Each row is a `Record`, whose errors name the
file and the location in it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from perceptune.data.lazy_rows import lines_of
from perceptune.data.records import DECODER, Record, json_type, utf8
from perceptune.data.tabular import Dialect, decoded, delimiter_named, encoding_named, recognize, table_records
from perceptune.data.tasks._files import plain, reading
from perceptune.errors import UserError


def read_json(path: Path) -> Any:
    """Read a JSON file completely. Raises `UserError` naming the file."""
    with reading(path):
        text = utf8(plain(path).read_bytes(), str(path))
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: invalid JSON: {error}") from error


def json_rows(document: Any, path: Path, keys: Sequence[str] = (), *, at: str | None = None) -> Iterator[Record]:
    """Yield the objects of a list, or the values of an object, whose keys become their `id`.

    `document` is the result of `read_json(path)`; `at` is the key of the rows in it. `keys` are those of a row that
    have a meaning. Raises `UserError` if the rows, or one of them, have another type.
    """
    if at is not None:
        document = Record(str(path), _object(document, str(path)), (at,))
        if at not in document.values:
            raise document.lacks([at])
        document = document.values[at]
    found = f"{path}, `{at}`" if at else str(path)
    if isinstance(document, list):
        for index, row in enumerate(document):
            where = f"{found}, row {index}"
            yield Record(where, _object(row, where), tuple(keys))
    else:
        for name, row in _object(document, found, "a list or an object of rows").items():
            where = f"{found}, `{name}`"
            yield Record(where, {"id": name, **_object(row, where)}, tuple(keys))


def _object(value: Any, where: str, expected: str = "an object") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {json_type(value)}, not {expected}")
    return value


class TableOptions(BaseModel):
    """The recipe keys for a table whose format is ambiguous."""

    delimiter: str | None = Field(
        None, description="column delimiter: one character or `tab`; None = detected from the header"
    )
    encoding: str | None = Field(None, description="such as `cp1251`; None = UTF-8, else Windows-1252 if detected")

    @field_validator("delimiter", "encoding")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        named = delimiter_named if info.field_name == "delimiter" else encoding_named
        return None if value is None else named(value)


def dialect_of(path: Path, options: TableOptions | None = None, *, known: Sequence[str] = ()) -> Dialect:
    """Detect the format of a table, as far as `options` do not set it. `known` are possible names of its columns.

    Without `options` it is a published table, which is in UTF-8.
    """
    return recognize(
        lambda: _byte_lines(path), str(path), default="\t" if ".tsv" in path.suffixes else ",", known=known,
        delimiter=options.delimiter if options else None, encoding=options.encoding if options else "utf-8",
        settable=options is not None,
    )  # fmt: skip


def table_rows(
    path: Path, keys: Sequence[str] = (), *, dialect: Dialect | None = None, columns: Sequence[str] | None = None,
    quoted: bool = True, known: Sequence[str] = (),
) -> Iterator[Record]:  # fmt: skip
    """Yield the rows of a table; see `table_records`. Without a `dialect` the format is detected."""
    dialect = dialect or dialect_of(path, known=known or keys)
    lines = decoded(_byte_lines(path), str(path), dialect.encoding)
    yield from table_records(lines, str(path), dialect, keys, columns=columns, quoted=quoted, known=known)


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the lines of a text file with their ends. Raises `UserError` naming a line in another encoding."""
    return decoded(_byte_lines(path), str(path), encoding)


def _byte_lines(path: Path) -> Iterator[bytes]:
    with reading(path), plain(path).open("rb") as file:
        yield from lines_of(file, str(path))
