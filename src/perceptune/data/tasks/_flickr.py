"""Flickr8k and Flickr30k: the formats in which their captions are distributed."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.records import Record, short
from perceptune.data.tabular import Dialect
from perceptune.data.tasks._captions import Captioned, CaptionSet
from perceptune.data.tasks._karpathy import karpathy_rows
from perceptune.data.tasks._rows import table_rows, text_lines
from perceptune.data.tasks._sets import text_of
from perceptune.errors import UserError, nearest

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_FORMATS = Literal["karpathy", "token", "csv", "hf"]
# The bar after the number is missing in one row of the distributed file.
_BARRED = re.compile(r"(?P<image>[^|]+)\|\s*(?P<number>\d+)\s*\|?\s*(?P<caption>.*)")


class FlickrSet(CaptionSet):
    """Five captions per image. Some formats contain the split of each image; others need a list of images per split."""

    class Options(CaptionSet.Options):
        """Options of every set of captions, and the format of its files."""

        format: _FORMATS = Field("karpathy", description="format of the annotation files")
        lists: dict[str, str] = Field(
            default_factory=dict, description="split → text file with its images' names, if not named as published"
        )

    template = "{name}"
    one_row_a_medium = False
    forms: ClassVar[Mapping[str, str]]  # format -> file, as published
    lists: ClassVar[Mapping[str, tuple[str, ...]]]  # split -> files with its images, as published

    def published(self) -> dict[str, tuple[str, ...]]:
        form = self._options.format
        if form not in self.forms:
            raise UserError(f"`format`: this data set has no form `{form}`{nearest(form, self.forms)}")
        return dict.fromkeys(_SPLITS.values(), (self.forms[form],))

    def rows(self, split: str) -> Iterator[Captioned]:
        forms = {"karpathy": _karpathy, "hf": _hf}
        for path in self.annotations(split):
            if self._options.format in forms:
                found = forms[self._options.format](path, split)
            else:
                listed = self._listed(split)
                lines = _tokens(path) if self._options.format == "token" else _table(path)
                found = (line for line in lines if Path(line[0]).stem in listed)
            for name, record in found:
                captions = self.captions(split, record)
                yield Captioned(record, Path(name).stem, self.medium(record, name=name), captions)

    def _listed(self, split: str) -> set[str]:
        """Return the names of a split's images without their suffix."""
        names = {**self.lists, **{split: (name,) for split, name in self._options.lists.items() if name}}
        if split not in names:
            raise UserError(f"`lists` names no file with the images of split `{split}`")
        return {Path(line.strip()).stem for name in names[split] for line in text_lines(self._options.dir / name)}


def _karpathy(path: Path, split: str) -> Iterator[tuple[str, Record]]:
    for row, names, captions in karpathy_rows(path, split):
        yield names["filename"], Record(row.where, {"caption": captions.values["raw"]}, ("caption",))


def _hf(path: Path, split: str) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a table with the captions of an image as a JSON list in one cell."""
    for row in table_rows(path):
        part = text_of(row, "split")
        if part not in _SPLITS:
            raise row.error(f"unknown split `{part}`{nearest(part, _SPLITS)}")
        if _SPLITS[part] == split:
            try:
                captions = json.loads(text_of(row, "raw"))
            except ValueError as error:
                raise row.error(f"`raw` is no JSON list of captions: {error}") from error
            yield text_of(row, "filename"), Record(row.where, {"caption": captions}, ("caption",))


def _tokens(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the rows of lines `1000092795.jpg#0<TAB>caption`."""
    for row in table_rows(path, ["caption"], dialect=Dialect("\t"), columns=["image", "caption"], quoted=False):
        yield row.text("image").rpartition("#")[0], row


def _table(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a table with commas (`image,caption`) or bars (`image_name| comment_number| comment`)."""
    header = next(text_lines(path), "")
    if "|" not in header:
        for row in table_rows(path, ["caption"]):
            yield text_of(row, "image"), row
        return
    for number, line in enumerate(text_lines(path), 1):
        if number == 1 or not line.strip():
            continue
        match = _BARRED.fullmatch(line.strip())
        where = f"{path}, line {number}"
        if match is None:
            raise UserError(f"{where}: expected `{header.strip()}`, got {short(line.strip())}")
        yield match["image"].strip(), Record(where, {"caption": match["caption"]}, ("caption",))
