"""A folder of media as Hugging Face's `imagefolder`, `audiofolder` and `videofolder` read one.

    train/metadata.jsonl    {"file_name": "001.jpg", "text": "a cat"}       or metadata.csv, metadata.parquet
    train/001.jpg           beside the metadata, or below

`file_name`, or `image_file_name`, `audio_file_name` and `video_file_name`, is relative to the metadata. Without
metadata the name of a medium's folder is its target. Splits are the folders that were given. Files that are not media,
hidden ones and those of systems (`._1.jpg`, `__MACOSX`) are passed over, and counted. A GIF is an image where there
are others, else a video if any is animated; `modality` selects the media.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from perceptune.data.media.animation import moves
from perceptune.data.media.suffixes import EITHER, MEDIA, MODALITIES, PassedOver, modality_of, suffix_of, walk
from perceptune.data.records import Record, short
from perceptune.data.tabular import Dialect
from perceptune.data.tasks import base
from perceptune.errors import UserError, nearest
from perceptune.utils.paths import absence, local_name

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_EXCEPT_VIDEOS = ("image", "audio")
# Folders with these names are splits, not classes.
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
_TARGET_KEYS = ("targets", "text", "caption")
_FILE_KEYS = {"file_name": None, **{f"{modality}_file_name": modality for modality in MODALITIES}}


class Folder(base.Converted):
    """Folders of media; splits are the given folders, and a subfolder may have its own metadata."""

    class Options(base.TableOptions, base.Converted.Options):
        """Options of rows and of tables, and the names of the metadata's columns."""

        modality: Literal["image", "audio", "video"] | None = Field(
            None, description="modality of a folder without metadata, and of GIF files; None = all media"
        )
        prompt_key: str = "prompt"
        target_key: str | None = Field(None, description="None = `targets`, else `text`, else `caption`")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._passed: dict[str, str] = {}  # split -> note on skipped files

    def notes(self, split: str) -> list[str]:
        tables = [file for file in self.sources(self._given[split], split) if file.name == "metadata.csv"]
        return [f"{file.name}: {note}" for file in tables for note in self._dialect(file).notes]

    def _dialect(self, file: Path) -> Dialect:
        return base.dialect_of(file, self._options, known=self._names())

    def _names(self) -> tuple[str, ...]:
        """Return the possible names of a table's columns."""
        target = self._options.target_key
        return (*_FILE_KEYS, self._options.prompt_key, "id", *((target,) if target else _TARGET_KEYS))

    def _metadata(self, source: Path) -> Iterator[Record]:
        if source.suffix == ".csv":
            return base.table_rows(source, dialect=self._dialect(source), known=self._names())
        return base.json_objects(source) if source.suffix == ".jsonl" else base.parquet_rows(source)

    def _folder(self, split: str) -> Path:
        return self._options.media or self._given[split]

    def form(self, split: str) -> list[str]:
        """Return the notes of every reader, and one on skipped files."""
        return [*([note] if (note := self._passed.get(split)) else []), *super().form(split)]

    def sources(self, path: Path, split: str) -> list[Path]:
        """Return the metadata files, or the media themselves."""
        if not path.is_dir():
            why = f"{path} is no folder" if path.exists() else absence(path).why()
            raise UserError(f"{why}; task `folder` reads media with `metadata.jsonl` beside them")
        passed = PassedOver()
        files = sorted(walk(path, passed))
        found = [file for file in files if file.name in _NAMES]
        for one, other in pairwise(found):
            if one.parent == other.parent:
                raise UserError(f"{one} and {other.name} describe one folder: remove one of them")
        if not found:
            found, loose = self._classified(path, files, passed)
            self._note(split, passed, loose)
            if not found:
                raise UserError(_nothing(path, passed, loose))
        _require_no_splits(path, found, split)
        return found

    def _classified(self, path: Path, files: Sequence[Path], passed: PassedOver) -> tuple[list[Path], int]:
        """Return the media in class folders, and the number of those in none; other files are counted in `passed`."""
        wanted = (self._options.modality,) if self._options.modality else MODALITIES
        found, loose = list[Path](), 0
        for file in files:
            if modality_of(file, wanted) is None:
                passed.add(file.name)
            elif file.parent == path:
                loose += 1
            else:
                found.append(file)
        return found, loose

    def _note(self, split: str, passed: PassedOver, loose: int) -> None:
        """Print once a note on files of a split's folder that are not read."""
        notes = [f"{loose:,} media lie in no class's folder"] if loose else []
        note = "; ".join([*notes, *([str(passed)] if passed else [])])
        if note and split not in self._passed:
            print(f"{split}: {note}", file=sys.stderr)
        self._passed[split] = note

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        sources = self.sources(path, split)
        among = self._modalities(sources)
        for source in sources:
            if source.name in _NAMES:
                for row in self._metadata(source):
                    yield row._replace(values=self._canonical(row, source.parent.relative_to(path)))
            else:
                name = source.relative_to(path).as_posix()
                values = {"id": name, str(modality_of(source, among)): name, "targets": source.parent.name}
                yield Record(str(source), values, ())

    def _modalities(self, sources: Sequence[Path]) -> tuple[str, ...]:
        """Return the possible modalities of a folder's media: GIF files are videos only if nothing indicates images."""
        if self._options.modality:
            return (self._options.modality,)
        others = {modality_of(file) for file in sources if suffix_of(file) != EITHER}
        gifs = (file for file in sources if suffix_of(file) == EITHER)
        videos = "image" not in others and ("video" in others or any(map(moves, gifs)))
        return MODALITIES if videos else _EXCEPT_VIDEOS

    def _canonical(self, row: Record, folder: Path) -> dict[str, Any]:
        keys = [key for key in _FILE_KEYS if row.values.get(key) is not None]
        if not keys:
            raise row.lacks(["file_name"])
        media = {}
        for key in keys:
            name = row.text(key)
            kind = _FILE_KEYS[key] or modality_of(
                name, _EXCEPT_VIDEOS if self._options.modality == "image" else MODALITIES
            )
            if kind is None:
                suffixes = [suffix for some in MEDIA.values() for suffix in some]
                near = nearest(suffix_of(name), suffixes)
                raise row.error(f"`{key}` {short(name)}: no medium has this suffix{near}")
            if kind in media:
                raise row.error(f"`{key}`: more than one {kind}")
            media[kind] = (folder / local_name(name)).as_posix()
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
        return self._options.target_key or next((key for key in _TARGET_KEYS if key in row.values), "targets")


TASK = Folder


def _nothing(path: Path, passed: PassedOver, loose: int) -> str:
    """Return why a folder without metadata has no samples."""
    found = f" ({passed})" if passed else ""
    if loose:
        advice = "put each into a folder named after its class, or write a `metadata.jsonl` beside them"
        return f"{path}: {loose:,} media lie in the folder itself and none below it: {advice}{found}"
    return f"{path} holds no samples: no medium in it and no metadata{found}"


def _require_no_splits(path: Path, sources: Sequence[Path], split: str) -> None:
    """Raise `UserError` if the folders in `path` are splits, which would otherwise be read as classes."""
    inside = [source.relative_to(path).parts for source in sources]
    above = {parts[0] for parts in inside if len(parts) > 1}
    named = sorted(name for name in above if name.lower() in _SPLITS)
    # `train` may be a class, such as beside `bus` and `car`.
    nested = any(len(parts) > 2 or parts[-1] in _NAMES for parts in inside if parts[0] in named)
    if len(named) > 1 and (nested or len(named) == len(above)):
        folders = ", ".join(f"`{name}`" for name in named)
        raise UserError(
            f"{path} holds the splits {folders}, not classes: give one of them as `{split}`, such as {path / named[-1]}"
        )
