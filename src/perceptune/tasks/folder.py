"""A folder of media as Hugging Face's `imagefolder`, `audiofolder` and `videofolder` read one.

    train/metadata.jsonl    {"file_name": "001.jpg", "text": "a cat"}       or metadata.csv, metadata.parquet
    train/001.jpg           beside the metadata, or below

`file_name`, or `image_file_name`, `audio_file_name` and `video_file_name`, is relative to the metadata. Without
metadata the name of a medium's folder is its target. Splits are the folders that were given.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field

from perceptune.errors import UserError, nearest
from perceptune.records import Record, short
from perceptune.tasks.base import MEDIA, MODALITIES, Converted, json_objects, parquet_rows, table_rows

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_KINDS = {suffix: modality for modality, suffixes in MEDIA.items() for suffix in suffixes}
_FILE_KEYS = {"file_name": None, **{f"{modality}_file_name": modality for modality in MODALITIES}}


class Folder(Converted):
    """Splits are the folders that were given; a folder below may have metadata of its own."""

    class Options(Converted.Options):
        """Those of rows, and what the metadata's columns are called."""

        prompt_key: str = "prompt"
        target_key: str | None = Field(None, description="None = `targets`, else `text`, else `caption`")

    def settings(self) -> object:
        return [self._options.prompt_key, self._options.target_key]

    def _folder(self, split: str) -> Path:
        return self._options.media or self._given[split]

    def sources(self, path: Path, split: str) -> list[Path]:
        """The metadata files, or the media themselves."""
        if not path.is_dir():
            raise UserError(f"{path} is no folder; task `folder` reads media with `metadata.jsonl` beside them")
        found = sorted(file for name in _NAMES for file in path.rglob(name))
        for one, other in pairwise(found):
            if one.parent == other.parent:
                raise UserError(f"{one} and {other.name} describe one folder: remove one of them")
        return found or sorted(file for file in path.rglob("*") if _suffix(file) in _KINDS and file.parent != path)

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        for source in self.sources(path, split):
            if source.name in _NAMES:
                for row in _metadata(source):
                    yield row._replace(values=self._canonical(row, source.parent.relative_to(path)))
            else:
                name = source.relative_to(path).as_posix()
                values = {"id": name, _KINDS[_suffix(source)]: name, "targets": source.parent.name}
                yield Record(str(source), values, ())

    def _canonical(self, row: Record, folder: Path) -> dict[str, Any]:
        keys = [key for key in _FILE_KEYS if row.values.get(key) is not None]
        if not keys:
            raise row.lacks(["file_name"])
        media = {}
        for key in keys:
            name = row.text(key)
            kind = _FILE_KEYS[key] or _KINDS.get(_suffix(Path(name)))
            if kind is None:
                raise row.error(
                    f"`{key}` {short(name)}: no medium has this suffix{nearest(_suffix(Path(name)), _KINDS)}"
                )
            if kind in media:
                raise row.error(f"`{key}`: more than one {kind}")
            media[kind] = (folder / name).as_posix()
        prompt, target = self._options.prompt_key, self._target_key(row)
        known = (*_FILE_KEYS, prompt, target)
        values = {key: value for key, value in row.values.items() if key not in known} | media
        if row.values.get(target) is not None:
            values["targets"] = row.values[target]
        if row.values.get(prompt) is not None:
            values["prompt"] = row.values[prompt]
        elif not self.may_lack_prompt:
            raise row.lacks([prompt])
        return values

    def _target_key(self, row: Record) -> str:
        known = ("targets", "text", "caption")
        return self._options.target_key or next((key for key in known if key in row.values), "targets")


TASK = Folder


def _metadata(source: Path) -> Iterator[Record]:
    readers = {".jsonl": json_objects, ".csv": table_rows, ".parquet": parquet_rows}
    return readers[source.suffix](source)


def _suffix(file: Path) -> str:
    return file.suffix.lower().removeprefix(".")
