"""The user's own workbook of Excel (`.xlsx`): a sheet whose first row names the columns, as in task `csv`.

Cells are read as they are shown: 3.0 is `3`, 0.5 in per cent `50%`; dates are written as 2024-05-31. Of a formula the
result is read that Excel stored. Needs `perceptune[excel]`.
"""

import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

from pydantic import Field

from perceptune.data.records import Record
from perceptune.data.tabular import named_records
from perceptune.data.tasks.base import Table, reading
from perceptune.errors import UserError, nearest

_DAMAGED = (BadZipFile, zlib.error, EOFError, ParseError, KeyError, ValueError, RuntimeError)
_NUMBER = re.compile(r"([#,0]*?)(0+)(?:\.(0+))?(%?)")  # formats with a fixed number of digits


class Workbook(Table):
    """Sheets of workbooks; splits are the given files."""

    class Options(Table.Options):
        """Options of rows, the names of the columns, and the sheet."""

        sheet: str | None = Field(None, description="name of the sheet; None = the first one that is not hidden")

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        with _opened(path) as book:
            sheet = self._sheet(path, book)
            sheet.reset_dimensions()  # some programs write wrong ones
            cells = _cells(f"{path}, sheet `{sheet.title}`", sheet)
            yield from named_records(cells, known=self._columns.names(self.captions))

    def notes(self, split: str) -> list[str]:
        path = self._given[split]
        with _opened(path) as book:
            several = self._options.sheet is None and len(_visible(book)) > 1
            return [f"sheet `{self._sheet(path, book).title}` of {len(_visible(book))}"] if several else []

    def _sheet(self, path: Path, book: Any) -> Any:
        sheets, wanted = {sheet.title: sheet for sheet in book.worksheets}, self._options.sheet
        if wanted is None:
            return (_visible(book) or book.worksheets)[0]
        if wanted not in sheets:
            raise UserError(f"{path}: no sheet `{wanted}`{nearest(wanted, sheets)}")
        return sheets[wanted]


TASK = Workbook


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a workbook. Raises `UserError` without openpyxl and for a file that is none."""
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(f"{path}: task `excel` needs openpyxl: run `pip install 'perceptune[excel]'`") from error
    with reading(path, *_DAMAGED), path.open("rb") as file:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and other things that are not read
            try:
                book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            except BadZipFile as error:
                raise UserError(
                    f"cannot read {path}: no .xlsx workbook, or one with a password: save it anew"
                ) from error
        if not book.worksheets:
            raise UserError(f"{path} has no sheet with cells")
        yield book


def _visible(book: Any) -> list[Any]:
    return [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]


def _cells(where: str, sheet: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield the location and the texts of each row, all of the length of the first one at least."""
    width = 0
    for number, row in enumerate(sheet.iter_rows(), 1):
        place = f"{where}, row {number}"
        cells = [_text(cell, place) for cell in row]
        if not any(cells):
            continue
        if not width:
            while not cells[-1]:
                cells.pop()
            width, cells = len(cells), ["" if cell is None else str(cell) for cell in cells]
        yield place, cells + [None] * (width - len(cells))


def _text(cell: Any, where: str) -> Any:
    """Return the text of a cell as it is shown; None for an empty one, and truth values as they are."""
    value = cell.value
    if value is None or isinstance(value, bool):
        return value
    if cell.data_type == "e":
        raise UserError(f"{where}: the error {value} in column {cell.column_letter}")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int | float):
        return _shown(value, cell.number_format)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _shown(value: float, form: str) -> str:
    """Return a number in its format if that fixes the digits, else with the digits that it needs."""
    match = _NUMBER.fullmatch(form.partition(";")[0])
    if match is None:
        return str(int(value)) if value == int(value) else f"{value:.15g}"
    places, number = len(match[3] or ""), value * 100 if match[4] else value
    width = len(match[2]) + places + bool(places) + (number < 0)
    return f"{number:0{width}{',' if ',' in match[1] else ''}.{places}f}{match[4]}"
