"""Rows of annotation files as they are published: lists and objects in a JSON file, tables of text.

Byte order marks, CRLF, gzip and UTF-16 are accepted. Each row is a `Record`, whose errors name the
file and the place in it.
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
    """All that a JSON file holds. Raises `UserError` naming the file."""
    with reading(path):
        text = utf8(plain(path).read_bytes(), str(path))
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: invalid JSON: {error}") from error


def json_rows(document: Any, path: Path, keys: Sequence[str] = (), *, at: str | None = None) -> Iterator[Record]:
    """The objects of a list, or the values of an object whose keys name them (such a row has its name as `id`).

    `document` is what `read_json` gave of `path`; `at` is the key of the rows in it. `keys` are those of a row that
    have a meaning. Raises `UserError` where the rows, or one of them, are something else.
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
    """The recipe keys by which a table is read where its own bytes do not tell."""

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
    """How a table is written, as far as `options` do not say it. `known` are names that its columns may have.

    Without `options` it is a published one, which is UTF-8.
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
    """The rows of a table, one at a time; see `table_records`. Without a `dialect` it is recognised."""
    dialect = dialect or dialect_of(path, known=known or keys)
    lines = decoded(_byte_lines(path), str(path), dialect.encoding)
    yield from table_records(lines, str(path), dialect, keys, columns=columns, quoted=quoted, known=known)


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends. Raises `UserError` naming the line that is not UTF-8."""
    return decoded(_byte_lines(path), str(path))


def _byte_lines(path: Path) -> Iterator[bytes]:
    with reading(path), plain(path).open("rb") as file:
        yield from lines_of(file, str(path))
