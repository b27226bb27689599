"""Published data sets: a folder with annotation files and media under the names their authors gave them."""

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
    """Return split -> its annotation files: the `patterns`, each filled in with the authors' name of the split."""
    return {split: tuple(pattern.format(name) for pattern in patterns) for split, name in splits.items()}


class MediaSet(Task):
    """A data set of one medium a sample. A leaf says what its files are called and what their rows mean.

    A split that is given by `annotations` only is added to those that the data set is published with.
    """

    class Options(Task.Options):
        """Where the data set lies, and in what its files differ from what its authors publish."""

        dir: Path = Field(description="the data set's folder; other paths are relative to it")
        # These are no `Path`: a recipe's own paths are taken relative to the recipe or to the current folder.
        media: str | dict[str, str] | None = Field(
            None, description="folder of the media, if it differs from `dir`, or split → folder"
        )
        template: str | None = Field(None, description="path of a medium in that folder; None = as published")
        annotations: dict[str, str | tuple[str, ...]] = Field(
            default_factory=dict, description="split → file or files, if they are not named as published"
        )
        check_files: bool = Field(True, description="check that every medium exists before the first step")
        skip_missing: int = Field(0, ge=0, description="missing media per split that may be skipped")

    data_option = "dir"
    modality: ClassVar[str] = "image"
    # As published, where a data set comes in several forms by `format`: split -> annotation files, and a medium's path
    # in the folder of media.
    files: ClassVar[Any]
    template: ClassVar[str | Mapping[str, str]]

    def __init__(self, options: Any) -> None:
        self._options = options
        self.first_line = getattr(options, "first_line", self.first_line)
        self._annotations = {**self.published(), **_given(options.annotations)}
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
        """Split -> annotation files as published, for the options that were given."""
        return dict(self.files.get(getattr(self._options, "format", ""), self.files))

    @abstractmethod
    def entries(self, split: str) -> Iterator[tuple[Record, Sample]]:
        """Every row of a split with the sample it gives, in the order of the files."""

    def samples(self, split: str) -> Sequence[Sample]:
        """Read whole, once. Raises `UserError` naming the file and the row that is wrong."""
        check_split(split, self.splits)
        if split not in self._made:
            self._made[split] = self._checked(split)
        return self._made[split]

    def read_from(self, split: str) -> frozenset[str]:
        """Its annotation files; with the split's name where one file holds several."""
        elsewhere = {name for other, names in self._annotations.items() if other != split for name in names}
        return frozenset(
            absolute(str(self._options.dir / name)) + (f"#{split}" if name in elsewhere else "")
            for name in self._annotations[split]
        )

    def annotations(self, split: str) -> list[Path]:
        """The annotation files of a split."""
        return [self._options.dir / name for name in self._annotations[split]]

    def json_rows(self, split: str, keys: Sequence[str] = (), *, at: str | None = None) -> Iterator[Record]:
        """Yield the rows of a split's annotation files in JSON; see `json_rows`."""
        for path in self.annotations(split):
            yield from json_rows(read_json(path), path, keys, at=at)

    def medium(self, record: Record, **fields: Any) -> dict[str, Path]:
        """The medium of a row, relative to the folder of its split's media: the template with `fields` filled in."""
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
    """The string at a key that must be there; numbers are written out."""
    if record.values.get(key) is None:
        raise record.lacks([key])
    value = record.values[key]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else record.text(key)


def number_of(record: Record, key: str) -> int:
    """The whole number at a key that must be there, also where it is written as text."""
    text = text_of(record, key)
    if not text.isdecimal():
        raise record.error(f"`{key}` is no whole number: {short(repr(text))}")
    return int(text)
