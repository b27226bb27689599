"""A data set of Hugging Face's `datasets`: what `save_to_disk` wrote, a parquet file, a folder, or a name of the hub.

Its columns of images, audio and videos are found by their kind and never decoded by that library. Rows are read one
by one from the memory-mapped files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import Field

from perceptune.data.lazy_rows import Census, LazyRows
from perceptune.data.media.remote_media import RemoteMedia, is_remote
from perceptune.data.records import Record, json_type
from perceptune.data.tasks.base import MODALITIES, GivenFiles, check_split, dialect_of, local
from perceptune.errors import UserError, nearest
from perceptune.types import Medium, Sample
from perceptune.utils.paths import absolute, local_name

_SAVED = ("dataset_dict.json", "state.json")  # files of `save_to_disk`
_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}


class HFDataset(GivenFiles):
    """A data set of `datasets`. `train`, `validation` and `test` name its splits; a part of one is `train[:10%]`."""

    class Options(GivenFiles.Options):
        """The location of the data set, its splits, and the names of the columns."""

        path: Path | str = Field(description="a local folder or file, or a name on the hub")
        config: str | None = Field(None, description="configuration of a data set that has several")
        train: str = "train"
        validation: str | None = None
        test: str | None = None
        image_key: str | None = Field(None, description="column of images; None = found by its type")
        audio_key: str | None = Field(None, description="column of audio; None = found by its type")
        video_key: str | None = Field(None, description="column of videos; None = found by its type")
        prompt_key: str = "prompt"
        target_key: str | None = Field(None, description="None = `targets`, else `caption`, `text` or `label`")
        id_key: str = "id"
        fetch_media: bool = Field(False, description="fetch media at http(s) addresses into perceptune's cache, once")

    data_option = "path"

    @classmethod
    def data_keys(cls, place: str, split: str | None = None) -> dict[str, str]:
        """Return the recipe keys for the data set at `place`; its split of the same name is evaluated."""
        keys = {"path": place}
        return {**keys, split: split} if split in ("validation", "test") else keys

    def read_from(self, split: str) -> frozenset[str]:
        path = str(self._options.path)
        place = absolute(path) if Path(path).exists() else path
        return frozenset([f"{place}#{self._options.config}#{self._given[split]}"])

    def samples(self, split: str) -> Sequence[Sample]:
        """Return lazy rows: all texts are checked once, a medium is read with its row."""
        check_split(split, self.splits)
        columns = _Columns(self._options, _load(str(self._options.path), self._options.config, self._given[split]))
        where = f"{self._options.path}, split `{self._given[split]}`"
        if self._remote is not None:
            self._remote.fetch_for(partial(self._places, columns, where), where, None)

        def read(indices: Iterable[int]) -> Iterator[Sample]:
            return (self._sample(columns, columns.rows[index], index, split, where) for index in indices)

        census = Census(
            self._sample(columns, values, index, split, where) for index, values in enumerate(columns.texts())
        )
        if not census:
            raise UserError(f"{where} holds no samples")
        samples = LazyRows(read, range(len(census)))
        if repeated := census.repeated(samples):
            earlier, later = repeated
            raise UserError(f"{where}, row {later}: its `{self._options.id_key}` is that of row {earlier}, too")
        self._check_metric(split, census.answer_types)
        return samples

    def _sample(self, columns: _Columns, values: dict[str, Any], index: int, split: str, where: str) -> Sample:
        options = self._options
        known = (options.prompt_key, columns.target, options.id_key)
        record = Record(f"{where}, row {index}", values, known)
        name = values.get(options.id_key)
        return Sample(
            id=f"{split}-{index:06d}" if name is None else str(name),
            media={
                key: _medium(record, key, column, self._remote)
                for key, column in columns.media.items()
                if values.get(column)
            },
            prompt=record.prompt(options.prompt_key, allow_empty=self.may_lack_prompt),
            targets=self.targets_of(columns.named(record), [columns.target], split),
            meta=self.with_choices(record, {key: value for key, value in record.meta().items() if key in columns.meta}),
        )

    @cached_property
    def _remote(self) -> RemoteMedia | None:
        return RemoteMedia() if self._options.fetch_media else None

    def _places(self, columns: _Columns, where: str) -> Iterator[Medium]:
        """Yield the media of all rows."""
        for index, values in enumerate(columns.rows.select_columns([*columns.media.values()])):
            record = Record(f"{where}, row {index}", values, ())
            for key, column in columns.media.items():
                if values[column]:
                    yield _medium(record, key, column, self._remote)


TASK = HFDataset


class _Columns:
    """A split's rows with undecoded media, and the roles of its columns."""

    def __init__(self, options: HFDataset.Options, data: Any) -> None:
        import datasets

        kinds = {"image": datasets.Image, "audio": datasets.Audio, "video": datasets.Video}
        self._undecoded, self.media = list[str](), dict[str, str]()
        for modality, kind in kinds.items():
            columns = [name for name, feature in data.features.items() if isinstance(feature, kind)]
            self._undecoded += columns
            name, key = getattr(options, f"{modality}_key"), f"`{modality}_key`"
            if name is None and len(columns) > 1:
                raise UserError(
                    f"{options.path}: {' and '.join(columns)} could both be the {modality}; choose by {key}"
                )
            if name is not None and name not in data.features:
                raise UserError(f"{options.path}: {key}: no column `{name}`{nearest(name, data.features)}")
            if name or columns:
                self.media[modality] = name or columns[0]
            for column in columns:
                data = data.cast_column(column, kind(decode=False))
        self.rows = data
        if not self.media:
            raise UserError(
                f"{options.path}: no column of images, audio or videos among {', '.join(data.features)}; "
                "name one of file names by `image_key`, `audio_key` or `video_key`"
            )
        known = ("targets", "caption", "text", "label")
        self.target = options.target_key or next((key for key in known if key in data.features), "targets")
        self.meta = {key for key in data.features if key not in self._undecoded and _is_plain(data.features[key])}

    def texts(self) -> Iterable[dict[str, Any]]:
        """Return every row without its media."""
        return self.rows.remove_columns(sorted(self._undecoded)) if len(self.rows) else []

    def named(self, record: Record) -> Record:
        """Return a row with the name of its class as the target instead of the number."""
        feature, value = self.rows.features.get(self.target), record.values.get(self.target)
        if not isinstance(value, int) or not hasattr(feature, "int2str"):
            return record
        return record._replace(values={**record.values, self.target: feature.int2str(value)})


def _is_plain(feature: Any) -> bool:
    """Return whether the values of a column can be represented in JSON."""
    inner = getattr(feature, "feature", feature)  # of a list
    return getattr(inner, "dtype", "") in ("string", "large_string", "bool") or "int" in getattr(inner, "dtype", "")


def _medium(record: Record, modality: str, column: str, remote: RemoteMedia | None) -> Medium:
    value = record.values[column]
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        raise record.error(f"`{column}` is {json_type(value)}, neither a medium nor the name of a file")
    if value.get("bytes"):
        return bytes(value["bytes"])
    name = local_name(value.get("path") or "")
    if not name:
        raise record.error(f"`{column}` has no bytes and no file")
    return remote.place(modality, name) if remote and is_remote(name) else Path(local(record, column, name))


def _load(path: str, config: str | None, split: str) -> Any:
    """Load a split by `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("task `hf-dataset` needs `datasets`: run `pip install 'perceptune[data]'`") from error
    place = Path(path)
    try:
        if any((place / name).is_file() for name in _SAVED):
            return _of_saved(datasets.load_from_disk(path), path, split)
        if place.is_file():
            kind = _TABLES.get(place.suffix)
            if kind is None:
                raise UserError(f"{path}: not one of the files {', '.join(_TABLES)}")
            return datasets.load_dataset(kind, data_files={"train": path}, split=split, **_table_settings(place))
        return datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot read the data set {path}, split `{split}`: {error}") from error


def _table_settings(place: Path) -> dict[str, Any]:
    """Return the format of a table as arguments of pandas."""
    if place.suffix not in (".csv", ".tsv"):
        return {}
    dialect = dialect_of(place, known=("prompt", "targets", "caption", "text", "label", "id", *MODALITIES))
    return {"sep": dialect.delimiter, "encoding": dialect.encoding, "skiprows": int(dialect.has_separator_line)}


def _of_saved(saved: Any, path: str, split: str) -> Any:
    if isinstance(saved, dict) and split not in saved:
        raise UserError(f"{path}: no split `{split}`{nearest(split, saved)}")
    return saved[split] if isinstance(saved, dict) else saved  # a single split has no name
