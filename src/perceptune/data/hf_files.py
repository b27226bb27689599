"""Data sets of Hugging Face's `datasets` on this machine or its hub: their splits, their rows, the names of classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from perceptune.data.media.suffixes import PassedOver, walk
from perceptune.data.tasks.base import MODALITIES, dialect_of, listed_names
from perceptune.errors import UserError, nearest

_DICT, _STATE = "dataset_dict.json", "state.json"  # files of `save_to_disk`: of several splits, of one
_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
_ROWS = (".parquet", ".arrow")  # suffixes of tables in a folder
# Keys under which writers put the names of classes into a schema.
_NAMES = ("names", "class_names", "label_names", "labels", "classes", "categories", "id2label")


def local_splits(path: Path | str) -> list[str]:
    """Return the splits of a local data set without reading its rows; empty if there is none at `path`.

    A single file or saved data set is one split, `train` unless it says otherwise.
    """
    place = Path(path)
    if (place / _DICT).is_file():
        return list(_json(place / _DICT).get("splits", []))
    if (place / _STATE).is_file():
        return [_json(place / _STATE).get("_split") or "train"]
    if place.is_file() or "*" in place.name:
        return ["train"] if place.suffix in _TABLES else []
    return [*_data_files(place)] if _holds_tables(place) else []


def load(path: str, config: str | None, split: str) -> Any:
    """Load a split, or a part of one such as `train[:10%]`, by `datasets`. Raises `UserError` if that fails."""
    datasets, place = _library(), Path(path)
    names = local_splits(place)
    wanted = [part.partition("[")[0].strip() for part in split.split("+")]
    for name in wanted:
        if names and name not in names and not (place / _STATE).is_file():  # one saved split may be called anything
            raise UserError(f"{path}: no split `{name}`{nearest(name, names)}")
    try:
        if (place / _DICT).is_file():
            return _parts(datasets.load_from_disk(path), split)
        if (place / _STATE).is_file():
            return _parts(dict.fromkeys(wanted, datasets.load_from_disk(path)), split)
        if place.is_file() or (names and "*" in place.name):
            kind = _TABLES.get(place.suffix)
            if kind is None:
                raise UserError(f"{path}: not one of the files {', '.join(_TABLES)}")
            return datasets.load_dataset(kind, data_files={"train": path}, split=split, **_table_settings(place))
        if names and config is None and not _found(place):
            files = _data_files(place)
            kind = _TABLES[Path(files[names[0]][0]).suffix]
            return datasets.load_dataset(kind, data_files=files, split=split)
        return datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot read the data set {path}, split `{split}`: {error}") from error


def folder_of(path: str, split: str) -> Path | None:
    """Return the folder of a local data set's tables, to which names of media in them are relative; else None."""
    place = Path(path)
    if not place.is_dir():
        return place.parent if local_splits(place) else None
    return next((file.parent for file in _tables(place, split)), place)


def names_in_schema(data: Any, path: str, split: str, column: str) -> list[str] | None:
    """Return the names of the classes that are numbered in a column, from the metadata of the table's schema."""
    from pyarrow import parquet

    schemas = [data.data.schema]  # of a saved data set; that of a parquet file is lost when it is loaded
    place = Path(path)
    files = [place] if place.is_file() else _tables(place, split) if place.is_dir() else []
    schemas += [parquet.read_schema(file) for file in files if file.suffix == ".parquet"][:1]
    for schema in schemas:
        own = schema.field(column).metadata if column in schema.names else None
        for metadata in (own, schema.metadata):
            texts = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
            values = {key: found for key, text in texts.items() if (found := _parsed(text)) is not None}
            attributes = values.get("PANDAS_ATTRS")
            for given in (values, attributes if isinstance(attributes, dict) else {}):
                if names := _listed(given, column):
                    return names
    return None


def _listed(values: dict[str, Any], column: str) -> list[str] | None:
    for key in (column, f"{column}_names", f"{column}s", *_NAMES):
        value = values.get(key)
        if isinstance(value, dict):
            value = value.get(column) or listed_names(value)
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return value
    return None


def _parsed(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return None


def _parts(splits: Any, spec: str) -> Any:
    """Return the parts of saved splits that `spec` names."""
    datasets = _library()
    sizes = {name: len(rows) for name, rows in splits.items()}
    parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    found = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return found[0] if len(found) == 1 else datasets.concatenate_datasets(found)


def _tables(place: Path, split: str) -> Iterator[Path]:
    """Yield the parquet files of a folder's split."""
    if (place / _DICT).is_file() or (place / _STATE).is_file():
        return
    name = re.split(r"[\[+]", split)[0].strip()
    yield from (Path(file) for file in _data_files(place).get(name, ()))


def _holds_tables(place: Path) -> bool:
    return place.is_dir() and any(file.suffix in _ROWS for file in walk(place, PassedOver()))


def _data_files(place: Path) -> dict[str, list[str]]:
    """Return split -> tables of a folder; empty if it holds no data set.

    Where there are more media than tables, the library would read the media: the tables are then found by its patterns.
    """
    return _found(place) or _found(place, by_patterns=True)


def _found(place: Path, *, by_patterns: bool = False) -> dict[str, list[str]]:
    """Return split -> tables of a folder, of the data set that the library finds or by its patterns of names."""
    datasets = _library()
    with suppress(OSError, ValueError, datasets.exceptions.DatasetsError):
        if by_patterns:
            patterns = datasets.data_files.get_data_patterns(str(place))
            found = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(place))
        else:
            found = datasets.load_dataset_builder(str(place)).config.data_files or {}
        tables = {str(split): [file for file in files if Path(file).suffix in _ROWS] for split, files in found.items()}
        return {split: files for split, files in tables.items() if files}
    return {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("task `hf-dataset` needs `datasets`: run `pip install 'perceptune[data]'`") from error
    return datasets


def _table_settings(place: Path) -> dict[str, Any]:
    """Return the format of a table as arguments of pandas."""
    if place.suffix not in (".csv", ".tsv"):
        return {}
    dialect = dialect_of(place, known=("prompt", "targets", "caption", "text", "label", "id", *MODALITIES))
    return {"sep": dialect.delimiter, "encoding": dialect.encoding, "skiprows": int(dialect.has_separator_line)}
