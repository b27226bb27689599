"""Tasks with lazy rows, for the user's own files and sets of millions of rows: only offsets are kept in memory."""

import json
import sys
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from perceptune.data.lazy_rows import Census, LazyRow, RowTable, select
from perceptune.data.media.remote_media import RemoteMedia, failure, is_remote
from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, short
from perceptune.data.tasks._files import Absent, missing
from perceptune.data.tasks._streams import kept
from perceptune.data.tasks._task import GivenFiles, check_split
from perceptune.errors import UserError
from perceptune.types import Sample
from perceptune.utils.paths import local_name

KEYS = (*MODALITIES, "prompt", "targets", "id")
TARGETS = ("targets", "caption", "captions")  # keys of the targets; the first that exists is used


class LazyRows(GivenFiles):
    """Rows in the form of task `jsonl`, one per line. A leaf defines the file and the parsing of a line."""

    class Options(GivenFiles.Options):
        """A file for each split, and the checks of its rows."""

        train: Path
        validation: Path | None = None
        test: Path | None = None
        check_files: bool = Field(True, description="check that every medium exists before the first step")
        skip_missing: int = Field(0, ge=0, description="missing media per split that may be skipped")
        fetch_media: bool = Field(False, description="fetch media at http(s) addresses into perceptune's cache, once")

    _against_repeats = ""  # advice for repeated ids, appended to the error

    @abstractmethod
    def _file(self, split: str) -> Path:
        """Return the text file with one row per line."""

    @abstractmethod
    def _record(self, row: LazyRow, split: str) -> Record | None:
        """Parse a line; return None for a blank one."""

    def _folder(self, split: str) -> Path:
        """Return the folder to which names of media are relative."""
        return Path(self._given[split].parent)

    def samples(self, split: str) -> Sequence[Sample]:
        """Check the whole file once; then read each row on access."""
        check_split(split, self.splits)
        table = self._table(split)
        looks = self._options.check_files or self._options.skip_missing > 0
        if self._remote is not None:
            place, most = str(self._given[split]), self._options.skip_missing if looks else None
            self._remote.fetch_for(self._table(split).scan, place, most)
        census, absent, gone = Census(), Absent(), array("q")
        for index, sample in enumerate(table.scan()):
            census.add(sample)
            if looks and not absent.look(index, sample):
                gone.append(index)
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
            why = failure(file) or missing(file)
            raise record.error(f"cannot read `{key}` {short(record.text(key))}: {why}{absent.others()}")
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

    def _sample(self, row: LazyRow, split: str, folder: Path) -> Sample | None:
        record = self._record(row, split)
        if record is None:
            return None
        keys = [*TARGETS, "text"] if self.captions else TARGETS
        used = next((key for key in keys if record.values.get(key) is not None), "targets")
        return Sample(
            id=id_of(record, f"{split}-{row.line:06d}"),  # locates the line
            media=media_of(record, folder, self._remote),
            prompt=record.prompt("prompt", allow_empty=self.may_lack_prompt),
            targets=self.targets_of(record, keys, split),
            meta=self.with_choices(record, {key: value for key, value in record.meta().items() if key != used}),
        )


class Converted(LazyRows):
    """Rows of another form. Their conversion to the form of task `jsonl` is cached until the file changes."""

    class Options(LazyRows.Options):
        """Options of `LazyRows`, and the folder of the media."""

        media: Path | None = Field(None, description="folder of the media; None = the folder of the file")
        prompt: str | None = Field(None, description="prompt of rows that have none")
        number_rows: bool = Field(False, description="use row numbers as ids instead of those in the file")

    _against_repeats = "; `number_rows: true` names samples by their number instead"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.may_lack_prompt |= options.prompt is not None

    @abstractmethod
    def rows(self, path: Path, split: str) -> Iterator[Record]:
        """Yield the rows of a file with the keys of task `jsonl`. Raises `UserError` naming the file and the line."""

    def notes(self, split: str) -> list[str]:
        """Return notes on the recognised format of a file."""
        return []

    def form(self, split: str) -> list[str]:
        return [*self.notes(split), *super().form(split)]

    def samples(self, split: str) -> Sequence[Sample]:
        found = self._read(split)
        if notes := self.notes(split):
            print(f"{self._given[split]}: {', '.join(notes)}", file=sys.stderr)
        return found

    def _read(self, split: str) -> Sequence[Sample]:
        return super().samples(split)

    def _folder(self, split: str) -> Path:
        return self._options.media or super()._folder(split)

    def sources(self, path: Path, split: str) -> list[Path]:
        """Return the files that the rows of a split depend on."""
        if problem := missing(path):
            raise UserError(f"cannot read {path}: {problem}")
        return [path]

    def _file(self, split: str) -> Path:
        path, options = self._given[split], self._options
        own = options.model_dump(mode="json", exclude=set(Converted.Options.model_fields))  # options that a reader adds
        how = [type(self).__name__, split, options.number_rows, options.prompt, own]
        return kept(self.sources(path, split), how, lambda: self._named(self.rows(path, split), split))

    def _named(self, rows: Iterable[Record], split: str) -> Iterator[Record]:
        for number, row in enumerate(rows, 1):
            values = dict(row.values)
            if self._options.number_rows or values.get("id") is None:
                values["id"] = f"{split}-{number:06d}"
            if self._options.prompt is not None and values.get("prompt") is None:
                values["prompt"] = self._options.prompt
            yield row._replace(values=values)

    def _record(self, row: LazyRow, split: str) -> Record | None:
        where, values = json.loads(row.text)
        return Record(where, values, KEYS)


def id_of(record: Record, default: str) -> str:
    """Return the row's id."""
    match record.values.get("id"):
        case None:
            return default
        case int(value) if not isinstance(value, bool):
            return str(value)
        case float(value):
            raise record.error(f"`id` is a number with a point ({value}), not a string or a whole one", "wrong-type")
    if not record.text("id").strip():
        raise record.error("`id` is empty", "empty-id")
    return record.text("id")


def media_of(record: Record, folder: Path, remote: RemoteMedia | None = None) -> dict[str, Path]:
    """Return the row's files by modality; empty if all are null. Addresses are an error without `remote`."""
    if not record.values.keys() & set(MODALITIES):
        raise record.lacks(MODALITIES)
    media = {}
    for key in MODALITIES:
        if record.values.get(key) is None:
            continue
        name = local_name(record.text(key))
        if not name.strip():
            raise record.error(f"`{key}` is empty; write null if the row has none", "empty-medium")
        media[key] = remote.place(key, name) if remote and is_remote(name) else _path(folder, local(record, key, name))
    return media


def local(record: Record, key: str, name: str) -> str:
    """Return a name that is not an address. Raises `RowError` for one that is."""
    if "://" in name or name.startswith("data:"):
        advice = " (`--fetch-media`, or `fetch_media: true` of the task, fetches it)" if is_remote(name) else ""
        raise record.error(f"`{key}` is an address, not a file{advice}: {short(name)}", "address")
    return name


@lru_cache(2**14)
def _path(folder: Path, name: str) -> Path:
    """Join a path; cached, because media repeat and creating a path takes as long as reading the rest of a row."""
    return folder / name
