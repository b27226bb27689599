"""The user's own data: a text file with one JSON object a line.

    {"image": "images/1.jpg", "prompt": "What animal is this?", "targets": ["a cat", "cat"]}

`image`, `audio` and `video` are files, relative to the folder of the text file; `null` where a row has none, and a list
where it has several. These may have places in the prompt, `Is <image> redder than <image>?`; the tags leave the text.
`targets` is one string or several, each of which counts as correct; `caption` or `captions` may replace it, and `text`
for caption metrics (`metric: CIDEr`). Optional are `id` and any other keys, which
become the sample's `meta`; with `answer_type` among them, each of its values has a separate accuracy.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from perceptune.data.lazy_rows import LazyRow, read_lines
from perceptune.data.records import Record, RowError, parse, wide_encoding
from perceptune.data.tasks.base import GZIPPED, KEYS, ColumnOptions, Examined, LazyRows, check_split, missing, plain
from perceptune.errors import UserError
from perceptune.types import Sample


class JSONLines(LazyRows):
    """JSONL files; splits are the given files, plain or gzipped."""

    class Options(ColumnOptions, LazyRows.Options):
        """Options of rows, and the names of the keys."""

    def _file(self, split: str) -> Path:
        return plain(self._given[split])

    def _record(self, row: LazyRow, split: str) -> Record | None:
        return record_of(row, self._given[split], self._columns.keys)

    def examine(self, split: str) -> Examined:
        """Read every line, valid or not. Raises `UserError` for a missing file."""
        check_split(split, self.splits)
        path = self._given[split]
        if problem := missing(path):
            raise UserError(f"cannot read {path}: {problem}")
        return Examined(self._grouping(self._examined(split), split), f"{path}, line", partial(self.form, split))

    def form(self, split: str) -> list[str]:
        """Return notes on properties of the file with which other readers may have problems."""
        with self._given[split].open("rb") as file:
            start = file.read(4)
        with plain(self._given[split]).open("rb") as file:
            text, _ = next(read_lines(file), (b"", 0))
        found = {"gzipped": start.startswith(GZIPPED), "UTF-16": wide_encoding(start) is not None,
                 "a byte order mark": text.startswith(b"\xef\xbb\xbf"),
                 "lines end in CRLF": text.endswith(b"\r\n")}  # fmt: skip
        return [*(name for name, there in found.items() if there), *super().form(split)]

    def _examined(self, split: str) -> Iterator[tuple[int, Sample | UserError]]:
        path, line, answer_types, mistaken = self._given[split], 0, set(), False
        folder = self._folder(split)
        if self._remote is not None:
            self._remote.fetch_for(lambda: self._valid(split, folder), str(path), None)
        try:
            with plain(path).open("rb") as file:
                for line, (text, _) in enumerate(read_lines(file), 1):
                    try:
                        sample = self._sample(LazyRow(0, line, text), split, folder)
                    except UserError as error:
                        mistaken = True
                        yield line, error
                        continue
                    if sample is not None:
                        answer_types.add(sample.meta.get("answer_type", ""))
                        yield line, sample
            if answer_types:
                self._check_metric(split, answer_types)
            elif not mistaken:
                raise RowError(f"{path} holds no samples", "no-samples")
        except UserError as error:
            yield line, error

    def _valid(self, split: str, folder: Path) -> Iterator[Sample | None]:
        """Yield the samples of valid lines."""
        with plain(self._given[split]).open("rb") as file:
            for line, (text, _) in enumerate(read_lines(file), 1):
                with suppress(UserError):
                    yield self._sample(LazyRow(0, line, text), split, folder)


TASK = JSONLines


def record_of(row: LazyRow, path: Path, keys: tuple[str, ...] = KEYS) -> Record | None:
    """Parse the object of a line, whose `keys` have a meaning; return None for a blank line."""
    where = f"{path}, line {row.line}"
    values = parse(row.text, where, "one object a line", "utf-8-sig" if row.line == 1 else "utf-8")
    return None if values is None else Record(where, values, keys)
