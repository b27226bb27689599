"""The user's own data: a text file with one JSON object a line.

    {"image": "pictures/1.jpg", "prompt": "What animal is this?", "targets": ["a cat", "cat"]}

`image`, `audio` and `video` are files, relative to the folder of the text file; `null` where a row has none.
`targets` is one string or several, of which each counts as right. Optional are `id` and any other keys, which
become the sample's `meta`; `answer_type` among them gives an accuracy of its own to each of its values.
"""

from __future__ import annotations

from pathlib import Path

from perceptune.lazy import Row
from perceptune.records import Record, parse
from perceptune.tasks.base import KEYS, LazyRows, plain


class JSONLines(LazyRows):
    """Splits are the files that were given, plain or gzipped."""

    def _file(self, split: str) -> Path:
        return plain(self._given[split])

    def _record(self, row: Row, split: str) -> Record | None:
        return record_of(row, self._given[split])


TASK = JSONLines


def record_of(row: Row, path: Path) -> Record | None:
    """The object of a line; blank lines are passed over."""
    where = f"{path}, line {row.line}"
    values = parse(row.text, where, "one object a line", "utf-8-sig" if row.line == 1 else "utf-8")
    return None if values is None else Record(where, values, KEYS)
