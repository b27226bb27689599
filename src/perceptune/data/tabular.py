"""Text tables of spreadsheets and other programs: delimiter, encoding and header are recognised.

`Dialect.notes` reports unusual formats. An ambiguous file is an error that names the keys that resolve it.
"""

import codecs
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, NamedTuple

from perceptune.data.records import Record, short
from perceptune.errors import UserError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMES = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "space": " "}
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(\\t|.)"?[\s;,]*', re.IGNORECASE)  # a first line that Excel writes
_SAMPLE = 50  # number of lines on which delimiters are compared
# Four or more adjacent bytes that are not ASCII hardly occur in words of Western European languages.
_FOREIGN = re.compile(rb"[\x80-\xff]{4}")
_NOT_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")

Lines = Callable[[], Iterable[bytes]]  # opens a file and yields its lines with their ends


class Dialect(NamedTuple):
    """The format of a table."""

    delimiter: str
    encoding: str = "utf-8"
    has_separator_line: bool = False  # whether it begins with a line such as `sep=;`
    notes: tuple[str, ...] = ()  # unusual properties


def delimiter_named(text: str) -> str:
    """Return a delimiter given as a character, a name or an escape (`tab`, `\\t`). Raises `ValueError` otherwise."""
    found = _NAMES.get(text.lower(), "\t" if text == "\\t" else text)
    if len(found) != 1 or found in '"\r\n\0':
        raise ValueError("is one character, such as `,` or `;`; `tab` or `\\t` stands for a tab")
    return found


def encoding_named(text: str) -> str:
    """Return Python's name of an encoding. Raises `ValueError` if it is unknown."""
    with suppress(LookupError):
        if (codec := codecs.lookup(text))._is_text_encoding:
            return codec.name
    raise ValueError("is not an encoding, such as `utf-8`, `cp1252`, `cp1251`, `gbk` or `shift_jis`")


def recognize(
    lines: Lines, where: str, *, delimiter: str | None = None, encoding: str | None = None, default: str = ",",
    known: Sequence[str] = (), settable: bool = False,
) -> Dialect:  # fmt: skip
    """Detect the format of a table; a given `delimiter` or `encoding` is used as it is.

    `known` are names that columns may have, which help to find the delimiter. `settable`: whether the user has keys
    `delimiter` and `encoding`, which errors then name. Raises `UserError` for an ambiguous table.
    """
    found = encoding or _encoding_of(lines, where, settable)
    sample = list(islice(decoded(lines(), where, found), _SAMPLE))
    match = _SEPARATOR_LINE.fullmatch(sample[0]) if sample else None
    if match is not None:
        default = "\t" if match[1] == "\\t" else match[1]
        sample = sample[1:]
    chosen = delimiter or (default if match is not None else _delimiter_of(sample, where, default, known, settable))
    notes = [f"{found} instead of UTF-8"] if encoding is None and found != "utf-8" else []
    notes += ["a line `sep=`"] if match is not None else []
    if delimiter is None and (match is not None or chosen != default):
        notes.append(f"separated by {DELIMITERS.get(chosen, f'`{chosen}`')}")
    return Dialect(chosen, found, match is not None, tuple(notes))


def decoded(lines: Iterable[bytes], where: str, encoding: str = "utf-8") -> Iterator[str]:
    """Decode lines, which may end in a carriage return only. Raises `UserError` naming the line."""
    number = 0
    mark = codecs.BOM_UTF8
    for line in lines:
        for part in line.removeprefix(mark).splitlines(keepends=True):
            number += 1
            try:
                yield part.decode(encoding)
            except UnicodeDecodeError as error:
                name = "UTF-8" if encoding == "utf-8" else encoding
                raise UserError(
                    f"{where}, line {number}: not {name} ({error.reason} at byte {error.start}); save it as UTF-8"
                ) from error
        mark = b""


def table_records(
    lines: Iterable[str], where: str, dialect: Dialect, keys: Sequence[str] = (), *,
    columns: Sequence[str] | None = None, quoted: bool = True, known: Sequence[str] = (),
) -> Iterator[Record]:  # fmt: skip
    """Yield rows as mappings from column name to text without surrounding space.

    The first line names the columns unless `columns` is given; names are matched to `known` ones regardless of case.
    Columns without a name must be empty, except a first one with row numbers. Without `quoted`, quotation marks are
    text. Raises `UserError` for a line with more or fewer columns.
    """
    rows = _csv_rows(lines, where, dialect, quoted)
    yield from named_records(islice(rows, int(dialect.has_separator_line), None), keys, columns=columns, known=known)


def _csv_rows(lines: Iterable[str], where: str, dialect: Dialect, quoted: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the location of each row, and its cells without surrounding space."""
    rows = csv.reader(
        chain.from_iterable(_checked(lines, where)), delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True, skipinitialspace=True,
    )  # fmt: skip
    while True:
        line = rows.line_num + 1  # a quoted cell may span several lines
        try:
            cells = next(rows, None)
        except csv.Error as error:
            hint = "; a quotation mark inside a quoted cell is written twice" if "expected after" in str(error) else ""
            raise UserError(f"{where}, line {line}: {error}{hint}") from error
        if cells is None:
            return
        yield f"{where}, line {line}", [cell.strip() for cell in cells]


def named_records(
    rows: Iterable[tuple[str, Sequence[Any]]], keys: Sequence[str] = (), *, columns: Sequence[str] | None = None,
    known: Sequence[str] = (),
) -> Iterator[Record]:  # fmt: skip
    """Yield rows, given by their location and cells, as mappings from column name; see `table_records`."""
    for where, cells in rows:
        if not any(cells):
            continue
        if columns is None:
            columns = _header(cells, where, known)
        else:
            yield Record(where, _row(cells, columns, where), tuple(keys))


def header_of(lines: Iterable[str], where: str, dialect: Dialect, known: Sequence[str] = ()) -> list[str]:
    """Return the names of a table's columns; empty for an empty table."""
    text = chain.from_iterable(_checked(lines, where))
    rows = ([cell.strip() for cell in row] for row in csv.reader(text, delimiter=dialect.delimiter))
    filled = (row for row in rows if any(row))
    cells = next(islice(filled, int(dialect.has_separator_line), None), [])
    return [name for name in _header(cells, where, known) if name]


def _checked(lines: Iterable[str], where: str) -> Iterator[list[str]]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(f"{where}, line {number}: a NUL character, which no text holds: the line is damaged")
        yield [line]


def _header(cells: Sequence[str], where: str, known: Sequence[str]) -> list[str]:
    by_case = {name.lower(): name for name in known}
    names = [by_case.get(cell.lower(), cell) if cell not in known else cell for cell in cells]
    for given, name in zip(cells, names, strict=True):
        if name and names.count(name) > 1:
            others = [cell for cell, other in zip(cells, names, strict=True) if other == name and cell != given]
            raise UserError(f"{where}: two columns are called `{given}`" + "".join(f" (`{one}`)" for one in others[:1]))
    return names


def _row(cells: Sequence[Any], columns: Sequence[str], where: str) -> dict[str, Any]:
    named = [name for name in columns if name]
    while len(cells) > len(columns) and not cells[-1]:
        cells = cells[:-1]  # spreadsheets pad rows with empty cells
    if len(cells) != len(columns):
        names = ", ".join(f"`{name}`" for name in named)
        # A header of one column is usually due to a delimiter that was not recognised.
        hint = "; are its columns separated by something else? `delimiter` says by what" if len(columns) == 1 else ""
        raise UserError(f"{where}: {len(cells)} columns, expected {len(columns)}: {names}{hint}")
    for number, (name, cell) in enumerate(zip(columns, cells, strict=True), 1):
        if not name and cell and number > 1:
            raise UserError(f"{where}: {short(repr(cell))} stands in column {number}, which has no name")
    return {name: cell for name, cell in zip(columns, cells, strict=True) if name}


def _encoding_of(lines: Lines, where: str, settable: bool) -> str:
    """Return UTF-8 if the whole file is valid, or Windows-1252 if it is plausible and not a damaged UTF-8 file."""
    try:
        for _ in decoded(lines(), where):
            pass
    except UserError as error:
        for line in lines():
            if any(sign.search(line) for sign in (_FOREIGN, _NOT_WINDOWS, _UTF8)):
                key = ", or name what it is by `encoding`, such as `cp1251` or `gbk`" if settable else ""
                raise UserError(f"{error}{key}") from error
        return "cp1252"
    return "utf-8"


def _delimiter_of(sample: Sequence[str], where: str, default: str, known: Sequence[str], settable: bool) -> str:
    """Return the delimiter that gives the header most known names and all lines the same number of cells."""
    header = next((line for line in sample if line.strip()), "")
    wanted = {name.lower() for name in known}
    choices: dict[str, tuple[int, bool, int]] = {}
    for delimiter in dict.fromkeys([default, *DELIMITERS]):
        cells = _cells([header], delimiter)[:1]
        if not cells or len(cells[0]) < 2:
            continue
        names = [cell.strip() for cell in cells[0]]
        while names and not names[-1]:
            names.pop()
        sizes = {len(row) for row in _cells(sample, delimiter) if any(row)}
        choices[delimiter] = (sum(name.lower() in wanted for name in names), len(sizes) == 1, len(names))
    if not choices:
        return default
    best = max(choices.values())
    chosen = [delimiter for delimiter, value in choices.items() if value == best]
    if len(chosen) == 1:
        return chosen[0]
    if default in chosen and best[0] == 0:
        return default
    several = " or ".join(DELIMITERS.get(delimiter, f"`{delimiter}`") for delimiter in chosen)
    key = "; say by `delimiter` which it is" if settable else ""
    raise UserError(f"{where}: its columns could be separated by {several}{key}")


def _cells(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the rows before the first one that cannot be parsed."""
    rows = []
    with suppress(csv.Error):
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True):
            rows.append(row)
    return rows
