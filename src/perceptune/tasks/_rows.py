"""Rows of annotation files as they are published: lists and objects in a JSON file, tables of text.

Byte order marks, CRLF and gzip are accepted; what is not UTF-8 is not. Each row is a `Record`, whose errors name the
file and the place in it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perceptune.errors import UserError
from perceptune.records import Record, json_type
from perceptune.tasks._files import plain


def read_json(path: Path) -> Any:
    """All that a JSON file holds. Raises `UserError` naming the file."""
    try:
        text = plain(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    try:
        return json.loads(text)
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


def table_rows(
    path: Path, keys: Sequence[str] = (), *, delimiter: str = ",", columns: Sequence[str] | None = None,
    quoted: bool = True,
) -> Iterator[Record]:  # fmt: skip
    """The lines of a table, one at a time: column name -> text, without the space around it.

    The first line names the columns unless they are given. Without `quoted`, quotation marks are text. Raises
    `UserError` for a line with more or fewer columns.
    """
    lines = csv.reader(
        _lines(path), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True,
        skipinitialspace=True,
    )  # fmt: skip
    while True:
        line = lines.line_num + 1  # a quoted cell may go over several lines
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {error}") from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        cells = [cell.strip() for cell in cells]
        if columns is None:
            columns = cells
            continue
        if len(cells) != len(columns):
            names = ", ".join(f"`{name}`" for name in columns)
            raise UserError(f"{path}, line {line}: {len(cells)} columns, expected {len(columns)}: {names}")
        yield Record(f"{path}, line {line}", dict(zip(columns, cells, strict=True)), tuple(keys))


def _lines(path: Path) -> Iterator[str]:
    try:
        with plain(path).open("rb") as file:
            for number, line in enumerate(file, 1):  # lines end at "\n" only
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
