"""A data set of Hugging Face's `datasets`: what `save_to_disk` wrote, a parquet file, a folder, or a name of the hub.

Its columns of images, audio and videos are found by their kind and never decoded by that library. Rows are read one
by one from the memory-mapped files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from perceptune.data.hf_columns import MediaColumns, inner
from perceptune.data.hf_files import folder_of, load, local_splits, names_in_schema
from perceptune.data.lazy_rows import Census, LazyRows
from perceptune.data.media.remote_media import RemoteMedia
from perceptune.data.records import Record, RowError
from perceptune.data.splits import SPLIT_NAMES, split_called
from perceptune.data.tasks.base import MODALITIES, InvalidRows, Sources, check_split, class_name, place_media
from perceptune.errors import UserError
from perceptune.types import Sample
from perceptune.utils.paths import absolute, local_name

_TARGET_KEYS = ("targets", "caption", "text", "label")


class HFDataset(Sources):
    """A data set of `datasets`. `train`, `validation` and `test` name its splits; a part of one is `train[:10%]`."""

    class Options(Sources.Options):
        """The location of the data set, its splits, and the names of the columns."""

        path: Path | str = Field(description="a local folder or file, or a name on the hub")
        config: str | None = Field(None, description="configuration of a data set that has several")
        train: str = "train"
        validation: str | None = None
        test: str | None = None
        media: Path | None = Field(None, description="folder of media given by name; None = the folder of the tables")
        image_key: str | None = Field(None, description="column of images; None = found by its type, else `image`")
        audio_key: str | None = Field(None, description="column of audio; None = found by its type, else `audio`")
        video_key: str | None = Field(None, description="column of videos; None = found by its type, else `video`")
        prompt_key: str = "prompt"
        target_key: str | tuple[str, ...] | None = Field(
            None, description="column of targets, or several; None = `targets`, else `caption`, `text` or `label`"
        )
        id_key: str = "id"
        check_files: bool = Field(True, description="check that media given by name exist before the first step")
        fetch_media: bool = Field(False, description="fetch media at http(s) addresses into perceptune's cache, once")

    data_option = "path"

    @classmethod
    def data_keys(cls, place: str, split: str | None = None) -> dict[str, str]:
        """Return the recipe keys for the data set at `place`, with its splits if it is on this machine."""
        names = local_splits(local_name(place))
        if not names:
            return {"path": place} | ({split: split} if split in ("validation", "test") else {})
        if len(names) == 1 and split in ("validation", "test"):
            return {"path": place, "train": names[0], split: names[0]}
        keys = {key: name for key in SPLIT_NAMES if (name := split_called(key, names, place))}
        if len(names) == 1 and not keys:
            keys = {"train": names[0]}
        return {"path": place} | {key: name for key, name in keys.items() if (key, name) != ("train", "train")}

    def read_from(self, split: str) -> frozenset[str]:
        path = str(self._options.path)
        place = absolute(path) if Path(path).exists() else path
        return frozenset([f"{place}#{self._options.config}#{self._given[split]}"])

    def _read(self, split: str) -> Sequence[Sample]:
        """Return lazy rows: all texts are checked once, a medium is read with its row, or once more to group rows."""
        check_split(split, self.splits)
        rows = self._rows(split)
        invalid, census, gone = InvalidRows(split, self._options.skip_invalid, rows.__len__), Census(), list[int]()
        groups = self._new_groups(split)
        whole = groups is not None
        for index, values in enumerate((rows[index] for index in range(len(rows))) if whole else rows.texts()):
            try:
                sample = self._sample(rows, values, index, split, whole=whole)
                census.add(sample)
                if groups is not None:
                    groups.add(sample)
            except RowError as error:
                invalid.add(error)
                gone.append(index)
        invalid.report(len(census))
        if not census:
            raise UserError(f"{rows.where} holds no samples")

        def read(indices: Iterable[int]) -> Iterator[Sample]:
            return (self._sample(rows, rows[index], index, split) for index in indices)

        kept = np.delete(np.arange(len(rows)), gone) if gone else range(len(rows))
        samples = LazyRows(read, kept)
        if repeated := census.repeated(samples):
            earlier, later = (int(kept[index]) for index in repeated)
            raise UserError(f"{rows.where}, row {later}: its `{self._options.id_key}` is that of row {earlier}, too")
        self._check_metric(split, census.answer_types)
        return samples

    def every_row(self, split: str) -> Iterator[Sample | RowError]:
        rows = self._rows(split)
        for index in range(len(rows)):
            try:
                yield self._sample(rows, rows[index], index, split)
            except RowError as error:
                yield error

    def _rows(self, split: str) -> _Rows:
        rows = _Rows(self._options, self._given[split], self.class_names, self._remote)
        if self._remote is not None:
            self._remote.fetch_for(rows.addresses, rows.where, None)
        return rows

    @cached_property
    def _remote(self) -> RemoteMedia | None:
        return RemoteMedia() if self._options.fetch_media else None

    def _sample(
        self, rows: _Rows, values: dict[str, Any], index: int, split: str, *, whole: bool = True
    ) -> Sample:  # fmt: skip
        """Return the sample of a row, whose media are only looked for unless `whole`."""
        options, keys = self._options, rows.targets
        record = Record(f"{rows.where}, row {index}", values, (options.prompt_key, *keys, options.id_key))
        rows.media.require(record, index, check_files=options.check_files and not whole)
        name, prompt = values.get(options.id_key), self.prompt_of(record, options.prompt_key)
        names = {modality: [""] * count for modality, count in rows.media.counts(index).items() if count}
        placed = place_media(record, prompt, names, allow_empty=self.may_lack_prompt)
        return Sample(
            id=f"{split}-{index:06d}" if name is None else str(name),
            media=placed.arrange(rows.media.media(record, index)) if whole else {},
            prompt=placed.text,
            targets=self.targets_of(rows.with_targets(record, split), keys[:1], split),
            meta=self.with_choices(record, {key: value for key, value in record.meta().items() if key in rows.meta}),
            marks=placed.marks,
        )


TASK = HFDataset


class _Rows:
    """A split's rows with undecoded media, and the roles of its columns."""

    def __init__(
        self, options: HFDataset.Options, split: str, class_names: list[str], remote: RemoteMedia | None
    ) -> None:  # fmt: skip
        path = str(options.path)
        data = load(path, options.config, split)
        self.where = f"{options.path}, split `{split}`"
        given = {key: getattr(options, f"{key}_key") for key in MODALITIES}
        self.media = MediaColumns(data, given, path, options.media or folder_of(path, split), remote)
        self._data, features, target = self.media.rows, data.features, options.target_key
        usual = next((key for key in _TARGET_KEYS if key in features), "targets")
        self._is_guess = target is None and usual == "label"
        self.targets = [usual] if target is None else [target] if isinstance(target, str) else [*target]
        self.meta = {key for key in features if key not in self.media.columns.values() and _is_plain(features[key])}
        self._class_names = {
            key: names
            for key in self.targets
            if (names := self._names(features.get(key), path, split, key, class_names))
        }

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._data[index])

    def texts(self) -> Iterable[dict[str, Any]]:
        """Return every row without its media."""
        if not len(self._data) or {*self._data.column_names} == {*self.media.opaque}:
            return ({} for _ in range(len(self._data)))  # a data set without columns has no rows, either
        return self._data.remove_columns(self.media.opaque)

    def addresses(self) -> Iterator[object]:
        """Yield the media of all rows that have an address; nothing for one that cannot be fetched."""
        for index in self.media.with_address():
            with suppress(RowError):  # it is raised again when the row is read
                yield self.media.media(Record(f"{self.where}, row {index}", self[index], ()), index)

    def with_targets(self, record: Record, split: str) -> Record:
        """Return a row with the names of classes for their numbers, and the targets of several columns at the first."""
        values = dict(record.values)
        for key, names in self._class_names.items():
            if values.get(key) == -1 and split == "test":  # the number of rows without a label
                values[key] = None
            elif values.get(key) is not None:
                values[key] = class_name(record, key, values[key], names)
        if self._is_guess and isinstance(values.get("label"), int):
            advice = "`class_names` gives numbered classes their names, and `target_key: label` takes the numbers"
            raise record.error(f"`label` is a number: {advice}", "wrong-type")
        if len(self.targets) > 1:
            values[self.targets[0]] = record._replace(values=values).gather(self.targets)
        return record._replace(values=values)

    def _names(self, feature: Any, path: str, split: str, key: str, given: list[str]) -> list[str] | None:
        """Return the names of the classes that are numbered in a column of targets; None if it holds no numbers."""
        own = inner(feature)
        if "int" not in getattr(own, "dtype", ""):
            return None
        return given or getattr(own, "names", None) or names_in_schema(self._data, path, split, key)


def _is_plain(feature: Any) -> bool:
    """Return whether the values of a column can be represented in JSON."""
    dtype = getattr(inner(feature), "dtype", "")
    return dtype in ("string", "large_string", "bool") or "int" in dtype
