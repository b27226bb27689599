"""Tasks with lazy rows, for the user's own files and sets of millions of rows: only offsets are kept in memory."""

import json
import sys
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from perceptune.data.lazy_rows import Census, LazyRow, RowTable, select
from perceptune.data.media.remote_media import RemoteMedia, failure
from perceptune.data.records import Record, short
from perceptune.data.tasks._columns import Columns, id_of, media_of
from perceptune.data.tasks._files import Absent, missing
from perceptune.data.tasks._marks import Placed, place_files
from perceptune.data.tasks._streams import kept
from perceptune.data.tasks._task import GivenFiles, check_split
from perceptune.errors import UserError
from perceptune.types import Media, Sample


class LazyRows(GivenFiles):
    """Rows in the form of task `jsonl`, one per line. A leaf defines the file and the parsing of a line."""

    class Options(GivenFiles.Options):
        """A file for each split, what its rows lack, and their checks."""

        train: Path
        validation: Path | None = None
        test: Path | None = None
        media: Path | dict[str, Path] | None = Field(
            None, description="folder of the media, or split → folder; None = the folder of the file"
        )
        prompt: str | None = Field(None, description="prompt of rows that have none")
        check_files: bool = Field(True, description="check that every medium exists before the first step")
        skip_missing: int = Field(0, ge=0, description="missing media per split that may be skipped")
        fetch_media: bool = Field(False, description="fetch media at http(s) addresses into perceptune's cache, once")

    _against_repeats = ""  # advice for repeated ids, appended to the error

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.may_lack_prompt |= options.prompt is not None
        self._columns = Columns(options)

    @abstractmethod
    def _file(self, split: str) -> Path:
        """Return the text file with one row per line."""

    @abstractmethod
    def _record(self, row: LazyRow, split: str) -> Record | None:
        """Parse a line; return None for a blank one."""

    def _folder(self, split: str) -> Path:
        """Return the folder to which names of media are relative."""
        return self._media_folder(split) or Path(self._given[split].parent)

    def _media_folder(self, split: str) -> Path | None:
        """Return the folder that `media` names for a split."""
        given = self._options.media
        found: Path | None = given.get(split) if isinstance(given, dict) else given
        return found

    def _read(self, split: str) -> Sequence[Sample]:
        """Check the whole file once; then read each row on access."""
        check_split(split, self.splits)
        table = self._table(split)
        looks = self._options.check_files or self._options.skip_missing > 0
        if self._remote is not None:
            place, most = str(self._given[split]), self._options.skip_missing if looks else None
            self._remote.fetch_for(self._table(split).scan, place, most)
        census, absent, gone, groups = Census(), Absent(), array("q"), self._new_groups(split)
        for index, sample in enumerate(table.scan()):
            census.add(sample)
            if looks and not absent.look(index, sample):
                gone.append(index)
            elif groups is not None:
                groups.add(sample)
        path = self._given[split]
        samples = table.samples()
        if repeated := census.repeated(samples):
            earlier, later = (self._at(table, index, split) for index in repeated)
            there = earlier.where.removeprefix(f"{path}, ")
            raise later.error(
                f"the id `{short(samples[repeated[1]].id)}` is that of {there}, too{self._against_repeats}"
            )
        if absent.first and len(absent) > self._options.skip_missing:
            index, key, file = absent.first
            record = self._at(table, index, split)
            key, why = self._columns.media_in(record)[key], failure(file) or missing(file)
            raise record.error(f"cannot read `{key}` {self._name_of(record, key, file, split)}: {why}{absent.others()}")
        if len(census) == len(gone):
            raise UserError(f"{path} holds no samples")
        self._check_metric(split, census.answer_types)
        if not gone:
            return samples
        print(f"{split}: {len(absent)} media are missing; {len(gone)} samples are left out", file=sys.stderr)
        return select(samples, np.delete(np.arange(len(census)), gone).tolist())

    def _table(self, split: str) -> RowTable:
        folder = self._folder(split)
        return RowTable([self._file(split)], lambda row: self._sample(row, split, folder))

    @cached_property
    def _remote(self) -> RemoteMedia | None:
        return RemoteMedia() if self._options.fetch_media else None

    def _at(self, table: RowTable, index: int, split: str) -> Record:
        record = self._record(table.row(index), split)
        assert record is not None  # its line contains a sample
        return record

    def _name_of(self, record: Record, key: str, file: Path, split: str) -> str:
        """Return the name by which a row names a file."""
        names = [str(name) for _, name in record.listed(key)]
        own = media_of(record, self._folder(split), {key: key}, self._remote).get(key, ())
        at = own.index(file) if isinstance(own, tuple) else 0
        return short(names[at])

    def _placed(self, record: Record, prompt: str, media: Mapping[str, Media]) -> Placed:
        """Return the prompt without the tags of several media, and their marks."""
        return place_files(record, prompt, media, allow_empty=self.may_lack_prompt)

    def _sample(self, row: LazyRow, split: str, folder: Path) -> Sample | None:
        record = self._record(row, split)
        if record is None:
            return None
        columns = self._columns
        keys, used = columns.media_in(record), columns.targets_in(record, self.captions)
        apart = used if keys is columns.media else (*used, *keys.values())
        name = id_of(record, f"{split}-{row.line:06d}", columns.id)  # locates the line
        media = media_of(record, folder, keys, self._remote)
        prompt = columns.prompt_of(record, self._options.prompt, allow_empty=self.may_lack_prompt)
        placed = self._placed(record, prompt, media)
        return Sample(
            id=name,
            media=placed.arrange(media),
            prompt=placed.text,
            targets=self._targets(record, used, split),
            meta=self.with_choices(record, {key: value for key, value in record.meta().items() if key not in apart}),
            marks=placed.marks,
            history=placed.history,
        )

    def _targets(self, record: Record, keys: Sequence[str], split: str) -> tuple[str, ...]:
        """Return the targets in all of the columns `keys`, some of which may be empty if there are several."""
        if len(keys) == 1:
            if split != "test" and record.values.get(keys[0]) is None:
                self._columns.require_targets(record, self.captions)
            return self.targets_of(record, keys, split)
        if split != "test":
            self._columns.require_targets(record, self.captions)
        filled = [key for key in keys if record.values.get(key) is not None]
        if not filled and split != "test":
            raise record.error(f"{', '.join(f'`{key}`' for key in keys)} are all empty", "no-targets")
        return tuple(target for key in filled for target in self.targets_of(record, [key], split))


class Converted(LazyRows):
    """Rows of another form. Their conversion to the form of task `jsonl` is cached until the file changes."""

    class Options(LazyRows.Options):
        """Options of `LazyRows`, and a remedy for ids that repeat."""

        number_rows: bool = Field(False, description="use row numbers as ids instead of those in the file")

    _against_repeats = "; `number_rows: true` names samples by their number instead"

    @abstractmethod
    def rows(self, path: Path, split: str) -> Iterator[Record]:
        """Yield the rows of a file with the keys of task `jsonl`, or those that the options name.

        Raises `UserError` naming the file and the line.
        """

    def notes(self, split: str) -> list[str]:
        """Return notes on the recognised format of a file."""
        return []

    def form(self, split: str) -> list[str]:
        return [*self.notes(split), *super().form(split)]

    def samples(self, split: str) -> Sequence[Sample]:
        found = super().samples(split)
        if notes := self.notes(split):
            print(f"{self._given[split]}: {', '.join(notes)}", file=sys.stderr)
        return found

    def sources(self, path: Path, split: str) -> list[Path]:
        """Return the files that the rows of a split depend on."""
        if problem := missing(path):
            raise UserError(f"cannot read {path}: {problem}")
        return [path]

    def _file(self, split: str) -> Path:
        path, options = self._given[split], self._options
        own = options.model_dump(mode="json", exclude=set(Converted.Options.model_fields))  # options that a reader adds
        how = [type(self).__name__, split, options.number_rows, own]
        return kept(self.sources(path, split), how, lambda: self._named(self.rows(path, split), split))

    def _named(self, rows: Iterable[Record], split: str) -> Iterator[Record]:
        key = self._columns.id
        for number, row in enumerate(rows, 1):
            named = not self._options.number_rows and row.values.get(key) is not None
            yield row if named else row._replace(values={**row.values, key: f"{split}-{number:06d}"})

    def _record(self, row: LazyRow, split: str) -> Record | None:
        where, values = json.loads(row.text)
        return Record(where, values, self._columns.keys)
