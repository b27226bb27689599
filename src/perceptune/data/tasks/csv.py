"""The user's own table: CSV, or TSV by its suffix, whose first line names the columns.

    image,prompt,targets
    images/1.jpg,What animal is this?,cat|a cat

Columns may have other names (`image_key`, `prompt_key`, `target_key`, ...); those without a meaning become the sample's
`meta`. An empty cell of a medium is a row without it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from perceptune.data.records import Record, RowError
from perceptune.data.tasks.base import MODALITIES, Converted, TableOptions, dialect_of, table_rows

_TARGETS = ("targets", "caption")  # names of the column of targets without `target_key`


class CSVTable(Converted):
    """Tables; splits are the given files, plain or gzipped."""

    class Options(TableOptions, Converted.Options):
        """Options of rows and of tables, and the names of the columns."""

        image_key: str = "image"
        audio_key: str = "audio"
        video_key: str = "video"
        prompt_key: str = "prompt"
        target_key: str | tuple[str, ...] | None = Field(
            None, description="column of targets, or several columns; None = `targets`, else `caption`"
        )
        target_separator: str = Field("|", min_length=1, description="separator of several targets in a cell")
        id_key: str = "id"

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        known = self._names()
        for row in table_rows(path, dialect=dialect_of(path, self._options, known=known), known=known):
            yield row._replace(values=self._canonical(row, split))

    def notes(self, split: str) -> list[str]:
        return [*dialect_of(self._given[split], self._options, known=self._names()).notes]

    def _names(self) -> tuple[str, ...]:
        """Return the possible names of columns."""
        options, target = self._options, self._options.target_key
        targets = _TARGETS if target is None else (target,) if isinstance(target, str) else target
        media = (getattr(options, f"{modality}_key") for modality in MODALITIES)
        return (*media, options.prompt_key, options.id_key, *targets)

    def _canonical(self, row: Record, split: str) -> dict[str, Any]:
        names = {modality: getattr(self._options, f"{modality}_key") for modality in MODALITIES}
        if not row.values.keys() & set(names.values()):
            raise _lacks(row, [*names.values()], "image_key")
        if self._options.prompt_key not in row.values and not self.may_lack_prompt:
            error = _lacks(row, [self._options.prompt_key], "prompt_key")
            raise RowError(f"{error}; `prompt` is one for all rows, and `metric: CIDEr` needs none", error.kind)
        given = dict(row.values)
        media = {modality: given.pop(name) or None for modality, name in names.items() if name in given}
        name, prompt = given.pop(self._options.id_key, None), given.pop(self._options.prompt_key, None)
        values = {**media, "id": name, "prompt": prompt, "targets": self._targets(row, split)}
        for key in self._target_keys(row):
            given.pop(key, None)
        return {**given, **{key: value for key, value in values.items() if value is not None or key in media}}

    def _target_keys(self, row: Record) -> tuple[str, ...]:
        key = self._options.target_key
        if key is None:
            key = next((key for key in _TARGETS if key in row.values), "targets")
        return (key,) if isinstance(key, str) else key

    def _targets(self, row: Record, split: str) -> list[str] | None:
        keys = self._target_keys(row)
        if split == "test" and not row.values.keys() & set(keys):
            return None  # a test file may contain questions only
        targets: list[str] = []
        for key in keys:
            if key not in row.values:
                raise _lacks(row, [key], "target_key")
            cell = row.values[key]
            targets += [cell] if self._is_list(row, key) else cell.split(self._options.target_separator)
        found = [target for target in map(str.strip, targets) if target]
        return None if split == "test" and not found else found

    def _is_list(self, row: Record, key: str) -> bool:
        """Return whether a cell contains a list written as text, which is parsed with the row."""
        cell = row.values[key]
        return self._options.parse_lists and row.items(key, cell) != [cell]


TASK = CSVTable


def _lacks(row: Record, wanted: Sequence[str], option: str) -> RowError:
    """Return the error for a table without a column, which often has another name; `option` can set that."""
    error = row.lacks(wanted)
    return RowError(f"{error}; a column of another name is given by `{option}`", error.kind)
