"""A folder of media as Hugging Face's `imagefolder`, `audiofolder` and `videofolder` read one.

    train/metadata.jsonl    {"file_name": "001.jpg", "text": "a cat"}       or metadata.csv, metadata.parquet
    train/001.jpg           beside the metadata, or below

`file_name`, or `image_file_name`, `audio_file_name` and `video_file_name`, is relative to the metadata; `file_names`
and so on hold a list. Without metadata the name of a medium's folder is its target; with `text_files` the lines of the
text beside it are (`001.jpg`, `001.txt`). Splits are the folders that were given. Files that are not media, hidden ones
and those of systems (`._1.jpg`, `__MACOSX`) are passed over, and counted. A GIF is an image where there are others,
else a video if any is animated; `modality` selects the media.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from perceptune.data.media.animation import moves
from perceptune.data.media.remote_media import is_remote
from perceptune.data.media.suffixes import EITHER, MEDIA, MODALITIES, PassedOver, modality_of, suffix_of, walk
from perceptune.data.records import Record, short
from perceptune.data.splits import METADATA, split_folders
from perceptune.data.tabular import Dialect
from perceptune.data.tasks import base
from perceptune.errors import UserError, nearest
from perceptune.utils.paths import absence, local_name

_EXCEPT_VIDEOS = ("image", "audio")
_TARGET_KEYS = ("targets", "text", "caption")
_FILE_KEYS = {
    **{f"file_name{plural}": None for plural in ("", "s")},
    **{f"{modality}_file_name{plural}": modality for modality in MODALITIES for plural in ("", "s")},
}
_TEXT = "txt"  # suffix of the texts of `text_files`


class Folder(base.Converted):
    """Folders of media; splits are the given folders, and a subfolder may have its own metadata."""

    class Options(base.TableOptions, base.Converted.Options):
        """Options of rows and of tables, and the names of the metadata's columns."""

        modality: Literal["image", "audio", "video"] | None = Field(
            None, description="modality of a folder without metadata, and of GIF files; None = all media"
        )
        text_files: bool = Field(
            False, description="the lines of the text beside each medium (`1.jpg`, `1.txt`) are its targets"
        )
        image_key: str | None = Field(None, description="metadata key of images, beside `file_name`")
        audio_key: str | None = Field(None, description="metadata key of audio, beside `file_name`")
        video_key: str | None = Field(None, description="metadata key of videos, beside `file_name`")
        prompt_key: str = "prompt"
        target_key: str | tuple[str, ...] | None = Field(
            None, description="key of the targets, or several keys; None = `targets`, else `text`, else `caption`"
        )
        id_key: str = "id"

    @classmethod
    def data_keys(cls, place: str, split: str | None = None) -> dict[str, str]:
        """Return the recipe keys for the folder at `place`, or for the folders of splits in it."""
        folders = split_folders(Path(local_name(place)))
        if not folders:
            return super().data_keys(place, split)
        return {"train": f"{Path(place) / 'train'}", **{split: str(folder) for split, folder in folders.items()}}

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._passed: dict[str, str] = {}  # split -> note on skipped files
        given = {getattr(options, f"{modality}_key"): modality for modality in MODALITIES}
        self._file_keys = _FILE_KEYS | {key: modality for key, modality in given.items() if key}

    def notes(self, split: str) -> list[str]:
        tables = [file for file in self.sources(self._given[split], split) if file.name == "metadata.csv"]
        return [f"{file.name}: {note}" for file in tables for note in self._dialect(file).notes]

    def _dialect(self, file: Path) -> Dialect:
        return base.dialect_of(file, self._options, known=self._names())

    def _names(self) -> tuple[str, ...]:
        """Return the possible names of a table's columns."""
        return (
            *self._file_keys,
            self._options.prompt_key,
            self._options.id_key,
            *(self._given_targets() or _TARGET_KEYS),
        )

    def _given_targets(self) -> tuple[str, ...]:
        given = self._options.target_key
        return (given,) if isinstance(given, str) else given or ()

    def _metadata(self, source: Path) -> Iterator[Record]:
        if source.suffix == ".csv":
            return base.table_rows(source, dialect=self._dialect(source), known=self._names())
        rows = base.json_objects(source) if source.suffix == ".jsonl" else base.parquet_rows(source)
        return _by_case(rows, self._names())

    def _folder(self, split: str) -> Path:
        return self._media_folder(split) or self._given[split]

    def form(self, split: str) -> list[str]:
        """Return the notes of every reader, and one on skipped files."""
        return [*([note] if (note := self._passed.get(split)) else []), *super().form(split)]

    def sources(self, path: Path, split: str) -> list[Path]:
        """Return the metadata files, or the media themselves, each with its text if these are read."""
        if not path.is_dir():
            why = f"{path} is no folder" if path.exists() else absence(path).why()
            raise UserError(f"{why}; task `folder` reads media with `metadata.jsonl` beside them")
        passed = PassedOver()
        files = sorted(walk(path, passed))
        found = [] if self._options.text_files else [file for file in files if file.name in METADATA]
        for one, other in pairwise(found):
            if one.parent == other.parent:
                raise UserError(f"{one} and {other.name} describe one folder: remove one of them")
        _require_no_splits(path, split)
        if found:
            return found
        if self._options.text_files:
            return self._described(path, files, passed, split)
        found, loose = self._classified(path, files, passed)
        self._note(split, passed, f"{loose:,} media lie in no class's folder" if loose else "")
        if not found:
            raise UserError(_nothing(path, passed, loose))
        return found

    def _classified(self, path: Path, files: Sequence[Path], passed: PassedOver) -> tuple[list[Path], int]:
        """Return the media in class folders, and the number of those in none; other files are counted in `passed`."""
        media = self._media(files, passed)
        found = [file for file in media if file.parent != path]
        return found, len(media) - len(found)

    def _media(self, files: Iterable[Path], passed: PassedOver) -> list[Path]:
        """Return the media among files; others are counted in `passed`."""
        wanted = (self._options.modality,) if self._options.modality else MODALITIES
        found = []
        for file in files:
            if modality_of(file, wanted) is None:
                passed.add(file.name)
            else:
                found.append(file)
        return found

    def _described(self, path: Path, files: Sequence[Path], passed: PassedOver, split: str) -> list[Path]:
        """Return the media that have a text beside them, each followed by it; files without the other are counted."""
        texts = {file.with_suffix(""): file for file in files if suffix_of(file) == _TEXT}
        media = self._media((file for file in files if suffix_of(file) != _TEXT), passed)
        stems = {file.with_suffix("") for file in media}
        lone = [file for file in media if file.with_suffix("") not in texts]
        left = [text for stem, text in texts.items() if stem not in stems]
        counts = [(lone, "media have no text beside them"), (left, "texts have no medium beside them")]
        notes = [f"{len(some):,} {what}, first {some[0].relative_to(path)}" for some, what in counts if some]
        self._note(split, passed, "; ".join(notes))
        found = [file for medium in media if (text := texts.get(medium.with_suffix(""))) for file in (medium, text)]
        if not found:
            many = f": {'; '.join(notes)}" if notes else ""
            raise UserError(
                f"{path}: no medium has a text file of its name beside it, as `1.txt` is beside `1.jpg`{many}"
            )
        return found

    def _note(self, split: str, passed: PassedOver, first: str) -> None:
        """Print once a note on files of a split's folder that are not read."""
        note = "; ".join(part for part in (first, str(passed)) if part)
        if note and split not in self._passed:
            print(f"{split}: {note}", file=sys.stderr)
        self._passed[split] = note

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        sources = self.sources(path, split)
        media = [source for source in sources if source.name not in METADATA and suffix_of(source) != _TEXT]
        among = self._modalities(media)
        if self._options.text_files:
            yield from self._pairs(path, sources, among)
            return
        for source in sources:
            if source.name in METADATA:
                for row in self._metadata(source):
                    yield row._replace(values=self._canonical(row, source.parent.relative_to(path)))
            else:
                name = source.relative_to(path).as_posix()
                values = {"id": name, str(modality_of(source, among)): name, "targets": source.parent.name}
                yield Record(str(source), values, ())

    def _pairs(self, path: Path, sources: Sequence[Path], among: Sequence[str]) -> Iterator[Record]:
        """Yield one row per text, with all media of its name; `sources` are media, each followed by its text."""
        rows: dict[Path, dict[str, Any]] = {}
        for medium, text in zip(sources[::2], sources[1::2], strict=True):
            kind, name = str(modality_of(medium, among)), medium.relative_to(path).as_posix()
            row = rows.setdefault(text, {"id": text.relative_to(path).with_suffix("").as_posix()})
            if kind in row:
                raise UserError(
                    f"{text}: {row[kind]} and {name} could both be its {kind}: remove one or set `modality`"
                )
            row[kind] = name
        for text, row in rows.items():
            lines = [line.strip() for line in base.text_lines(text, self._options.encoding or "utf-8")]
            captions = [line for line in lines if line]
            yield Record(str(text), {**row, "targets": captions}, ())

    def _modalities(self, sources: Sequence[Path]) -> tuple[str, ...]:
        """Return the possible modalities of a folder's media: GIF files are videos only if nothing indicates images."""
        if self._options.modality:
            return (self._options.modality,)
        others = {modality_of(file) for file in sources if suffix_of(file) != EITHER}
        gifs = (file for file in sources if suffix_of(file) == EITHER)
        videos = "image" not in others and ("video" in others or any(map(moves, gifs)))
        return MODALITIES if videos else _EXCEPT_VIDEOS

    def _canonical(self, row: Record, folder: Path) -> dict[str, Any]:
        found = {key: files for key in self._file_keys if (files := row.listed(key, parse_text=True))}
        if not found:
            raise row.lacks(["file_name"])
        media: dict[str, list[str]] = {}
        for key, files in found.items():
            own: dict[str, list[str]] = {}
            for place, value in files:
                name = row.check_text(place, value)
                file = name if is_remote(name) else (folder / local_name(name)).as_posix()
                own.setdefault(self._kind_of(row, key, name), []).append(file)
            if both := media.keys() & own:
                raise row.error(f"`{key}`: more than one {both.pop()}; several are a list at one key")
            media |= own
        prompt, name, targets = self._options.prompt_key, self._options.id_key, self._target_keys(row)
        known = (*self._file_keys, prompt, name, *targets)
        values = {key: value for key, value in row.values.items() if key not in known}
        values |= {kind: files if len(files) > 1 else files[0] for kind, files in media.items()}
        lacks = len(targets) < 2 and not any(key in row.values for key in targets)
        values |= {"id": row.values.get(name), "targets": None if lacks else row.gather(targets)}
        if row.values.get(prompt) is not None:
            values["prompt"] = row.values[prompt]
        elif not self.may_lack_prompt:
            raise row.lacks([prompt])
        return {key: value for key, value in values.items() if value is not None}

    def _kind_of(self, row: Record, key: str, name: str) -> str:
        """Return the modality of a file that metadata names."""
        among = _EXCEPT_VIDEOS if self._options.modality == "image" else MODALITIES
        kind = self._file_keys[key] or modality_of(name, among)
        if kind is None:
            suffixes = [suffix for some in MEDIA.values() for suffix in some]
            near = nearest(suffix_of(name), suffixes)
            raise row.error(f"`{key}` {short(name)}: no medium has this suffix{near}")
        return kind

    def _target_keys(self, row: Record) -> tuple[str, ...]:
        return self._given_targets() or tuple(key for key in _TARGET_KEYS if key in row.values)[:1]


TASK = Folder


def _nothing(path: Path, passed: PassedOver, loose: int) -> str:
    """Return why a folder without metadata has no samples."""
    found = f" ({passed})" if passed else ""
    if loose:
        advice = "put each into a folder named after its class, or write a `metadata.jsonl` beside them"
        return f"{path}: {loose:,} media lie in the folder itself and none below it: {advice}{found}"
    return f"{path} holds no samples: no medium in it and no metadata{found}"


def _by_case(rows: Iterable[Record], names: Sequence[str]) -> Iterator[Record]:
    """Yield rows with the known `names` for keys that differ from them in letter case only."""
    known = {name.lower(): name for name in names}
    for row in rows:
        values: dict[str, Any] = {}
        for key, value in row.values.items():
            name = key if key in names else known.get(key.lower(), key)
            values[key if name in row.values or name in values else name] = value
        yield row._replace(values=values)


def _require_no_splits(path: Path, split: str) -> None:
    """Raise `UserError` if the folders in `path` are splits, which would otherwise be read as classes."""
    folders = split_folders(path)
    if len(folders) > 1:
        names = ", ".join(f"`{folder.name}`" for folder in folders.values())
        one = folders.get(split) or [*folders.values()][-1]
        raise UserError(f"{path} holds the splits {names}, not classes: give one of them as `{split}`, such as {one}")
