"""Published data sets: a folder with annotation files and media under the names of the publication."""

import string
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from perceptune.data.records import Record, short
from perceptune.data.tasks._files import Absent, missing
from perceptune.data.tasks._rows import json_rows, read_json
from perceptune.data.tasks._task import Task, check_split
from perceptune.errors import UserError, error_prefix, nearest
from perceptune.types import Medium, Sample
from perceptune.utils.paths import absolute

TRAIN = "train"
_ORDER = (TRAIN, "validation")


def files_of(*patterns: str, **splits: str) -> dict[str, tuple[str, ...]]:
    """Return split -> annotation files: the `patterns`, formatted with the authors' name of the split."""
    return {split: tuple(pattern.format(name) for pattern in patterns) for split, name in splits.items()}


class MediaSet(Task):
    """A data set with one medium per sample. A leaf defines the names of its files and the meaning of their rows.

    A split that only `annotations` names is added to the published ones.
    """

    class Options(Task.Options):
        """The folder of the data set, and differences from the published files."""

        dir: Path = Field(description="the data set's folder; other paths are relative to it")
        # Not of type `Path`, because those are resolved against the recipe's or the current folder, not against `dir`.
        media: str | dict[str, str] | None = Field(
            None, description="folder of the media, if it differs from `dir`, or split → folder"
        )
        template: str | None = Field(None, description="path of a medium in that folder; None = as published")
        annotations: dict[str, str | tuple[str, ...]] = Field(
            default_factory=dict,
            description="split → file or files, if they are not named as published; an empty list removes a split",
        )
        check_files: bool = Field(True, description="check that every medium exists before the first step")
        skip_missing: int = Field(0, ge=0, description="missing media per split that may be skipped")

    data_option = "dir"
    modality: ClassVar[str] = "image"
    # As published, by `format` if a data set has several: split -> annotation files, and a medium's path in the folder
    # of media.
    files: ClassVar[Any]
    template: ClassVar[str | Mapping[str, str]]

    def __init__(self, options: Any) -> None:
        self._options = options
        self.first_line = getattr(options, "first_line", self.first_line)
        named = {**self.published(), **_given(options.annotations)}
        self._annotations = {split: files for split, files in named.items() if files}
        if not self._annotations:
            raise UserError("`annotations` removes every split")
        names = [*_ORDER, *(name for name in self._annotations if name not in _ORDER)]
        self.splits = tuple(name for name in names if name in self._annotations)
        if isinstance(options.media, dict):
            for split in options.media:
                with error_prefix("`media`"):
                    check_split(split, self.splits)
        published = self.template if isinstance(self.template, str) else self.template[options.format]
        self._template = options.template or published
        self._made: dict[str, list[Sample]] = {}

    def published(self) -> dict[str, tuple[str, ...]]:
        """Return split -> annotation files as published, for the given options."""
        return dict(self.files.get(getattr(self._options, "format", ""), self.files))

    @abstractmethod
    def entries(self, split: str) -> Iterator[tuple[Record, Sample]]:
        """Yield every row of a split with its sample, in the order of the files."""

    def samples(self, split: str) -> Sequence[Sample]:
        """Read a split completely, once. Raises `UserError` naming the file and the invalid row."""
        check_split(split, self.splits)
        if split not in self._made:
            self._made[split] = self._checked(split)
        return self._made[split]

    def read_from(self, split: str) -> frozenset[str]:
        """Return the annotation files of a split, with its name appended if a file contains several splits."""
        elsewhere = {name for other, names in self._annotations.items() if other != split for name in names}
        return frozenset(
            absolute(str(self._options.dir / name)) + (f"#{split}" if name in elsewhere else "")
            for name in self._annotations[split]
        )

    def annotations(self, split: str) -> list[Path]:
        """Return the annotation files of a split."""
        return [self._options.dir / name for name in self._annotations[split]]

    def json_rows(self, split: str, keys: Sequence[str] = (), *, at: str | None = None) -> Iterator[Record]:
        """Yield the rows of a split's annotation files in JSON; see `json_rows`."""
        for path in self.annotations(split):
            yield from json_rows(read_json(path), path, keys, at=at)

    def medium(self, record: Record, **fields: Any) -> dict[str, Path]:
        """Return a row's medium, relative to its split's folder of media: the template formatted with `fields`."""
        try:
            name = self._template.format_map(fields)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            known = {field for _, field, _, _ in string.Formatter().parse(self._template) if field} - fields.keys()
            hint = "".join(f": no `{name}`{nearest(name, fields)}" for name in sorted(known)[:1])
            raise record.error(f"`template` {self._template!r} cannot be filled in{hint or f': {error}'}") from error
        return {self.modality: Path(name)}

    def _media_folder(self, split: str) -> Path:
        given = self._options.media
        if isinstance(given, dict) and split not in given:
            raise UserError(
                f"`media` names no folder for split `{split}`, but for {', '.join(f'`{s}`' for s in given)}"
            )
        return Path(self._options.dir / ((given[split] if isinstance(given, dict) else given) or ""))

    def _checked(self, split: str) -> list[Sample]:
        kept, places, absent = list[Sample](), dict[str, str](), Absent()
        looks, folder = self._options.check_files or self._options.skip_missing, self._media_folder(split)
        for index, (record, found) in enumerate(self.entries(split)):
            media: dict[str, Medium] = {name: folder / str(place) for name, place in found.media.items()}
            sample = replace(found, media=media)
            if sample.id in places:
                raise record.error(f"the id `{short(sample.id)}` is that of {places[sample.id]}, too")
            places[sample.id] = record.where
            if not looks or absent.look(index, sample):
                kept.append(sample)
        if absent.first and len(absent) > self._options.skip_missing:
            index, key, file = absent.first
            where = [*places.values()][index]
            raise UserError(f"{where}: cannot read its {key} {file}: {missing(file)}{absent.others()}")
        if not kept:
            raise UserError(f"{self.annotations(split)[0]} holds no samples of split `{split}`")
        if absent:
            left = len(places) - len(kept)
            print(f"{split}: {len(absent)} media are missing; {left} samples are left out", file=sys.stderr)
        return kept


def _given(annotations: Mapping[str, str | tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {split: (files,) if isinstance(files, str) else files for split, files in annotations.items()}


def text_of(record: Record, key: str) -> str:
    """Return the string at a required key; integers are converted."""
    if record.values.get(key) is None:
        raise record.lacks([key])
    value = record.values[key]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else record.text(key)


def number_of(record: Record, key: str) -> int:
    """Return the integer at a required key; it may be written as text."""
    text = text_of(record, key)
    if not text.isdecimal():
        raise record.error(f"`{key}` is no whole number: {short(repr(text))}")
    return int(text)
