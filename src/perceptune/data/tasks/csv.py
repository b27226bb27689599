"""The user's own table: CSV, or TSV by its suffix, whose first line names the columns.

    image,prompt,targets
    images/1.jpg,What animal is this?,cat|a cat

Columns may have other names (`image_key`, `prompt_key`, `target_key`, ...); those without a meaning become the sample's
`meta`. An empty cell of a medium is a row without it.
"""

from collections.abc import Iterator
from pathlib import Path

from perceptune.data.records import Record
from perceptune.data.tabular import Dialect
from perceptune.data.tasks.base import Table, TableOptions, dialect_of, table_rows


class CSVTable(Table):
    """Tables; splits are the given files, plain or gzipped."""

    class Options(TableOptions, Table.Options):
        """Options of rows and of tables, and the names of the columns."""

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        return table_rows(path, dialect=self._dialect(path), known=self._columns.names(self.captions))

    def notes(self, split: str) -> list[str]:
        return [*self._dialect(self._given[split]).notes]

    def _dialect(self, path: Path) -> Dialect:
        return dialect_of(path, self._options, known=self._columns.names(self.captions))


TASK = CSVTable
