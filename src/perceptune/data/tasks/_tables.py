"""Tables with a header, as rows of the user's own data: cells without text, and several targets or media in a cell."""

from typing import Any

from pydantic import Field

from perceptune.data.lazy_rows import LazyRow
from perceptune.data.records import Record
from perceptune.data.tasks._columns import ColumnOptions
from perceptune.data.tasks._lazy_rows import Converted


class Table(Converted):
    """Rows of a table. A leaf yields its rows, with a text in each cell, or None."""

    class Options(ColumnOptions, Converted.Options):
        """Options of rows, the names of the columns, and the separator of targets."""

        target_separator: str = Field("|", min_length=1, description="separator of several targets in a cell")

    def _record(self, row: LazyRow, split: str) -> Record | None:
        record = super()._record(row, split)
        assert record is not None  # its line contains a row
        targets = self._columns.targets_in(record, self.captions)
        cells = {key: self._cell(record, key, split) for key in targets if isinstance(record.values.get(key), str)}
        keys = self._columns.media_in(record).values()
        media = {key: record.items(key, record.values[key]) if record.values[key] else None
                 for key in keys if key in record.values}  # fmt: skip
        return record._replace(values={**record.values, **media, **cells})

    def _cell(self, record: Record, key: str, split: str) -> Any:
        """Return the targets in a cell; None if it is empty and may be."""
        cell = record.values[key]
        is_list = self._options.parse_lists and record.items(key, cell) != [cell]
        targets = map(str.strip, [cell] if is_list else cell.split(self._options.target_separator))
        may_be_empty = split == "test" or len(self._columns.targets) > 1
        return [target for target in targets if target] or (None if may_be_empty else [])
