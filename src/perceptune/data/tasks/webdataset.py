"""WebDataset shards: tar archives of media with their texts, on this machine or wherever fsspec reads.

    000123.jpg  000123.json     members of one sample share their name up to the first dot, which becomes its id
    000124.flac 000124.json
    000124.mp4  000124.json

The JSON object holds `prompt` and `targets` as a row of task `jsonl` does, or a `caption`; a `txt` beside the medium
or in place of the JSON is a caption, too, and a `cls` the number or the name of a class. Several media of a modality
are numbered: `000125.0.jpg`, `000125.1.jpg`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from perceptune.data import webdataset_index
from perceptune.data.lazy_rows import Census, LazyRow, RowTable
from perceptune.data.media.suffixes import modality_of
from perceptune.data.records import Record, RowError, parse, short
from perceptune.data.splits import SPLIT_NAMES, split_of
from perceptune.data.storage import expand, files_in
from perceptune.data.tasks.base import MEDIA, InvalidRows, Sources, check_split, class_name, id_of, place_media
from perceptune.data.webdataset_index import IndexedShard
from perceptune.errors import UserError
from perceptune.types import Member, Sample
from perceptune.utils.paths import local_name

CAPTION, CLASS = "txt", "cls"
_NUMBERED = re.compile(r"(|.*[^\d.])\.?(\d{1,9})\.[a-z0-9]+")  # `0.jpg`, `img1.jpg`, `images.1.jpg`


class WebDataset(Sources):
    """WebDataset shards; splits are the given patterns. Samples are in the order of shards and archives."""

    class Options(Sources.Options):
        """A path or address for each split, with braces and wildcards, and the names of a sample's parts.

        `data/train-{000000..000127}.tar`, `s3://bucket/train-*.tar`, `hf://datasets/user/name/*.tar`; of a folder all
        its `.tar` files are read
        """

        train: Path | str
        validation: Path | str | None = None
        test: Path | str | None = None
        image_key: str | None = None  # part that is the image; None = the one whose name is an image's suffix
        audio_key: str | None = None  # likewise
        video_key: str | None = None  # likewise; `gif` is a video unless it is the `image_key`
        json_key: str = "json"
        prompt_key: str = Field("prompt", description="key of the JSON, or a part")
        target_key: str | tuple[str, ...] | None = Field(
            None, description="key of the JSON or a part, or several; None = `targets`, `caption`, part `txt` or `cls`"
        )
        id_key: str | None = Field(None, description="key of the JSON; None = the name of the sample's members")

    @classmethod
    def data_keys(cls, place: str, split: str | None = None) -> dict[str, str]:
        """Return the recipe keys for shards; in a folder those of several splits are told apart by their names."""
        found = split_shards(Path(local_name(place)))
        return {"train": place} | found if found else super().data_keys(place, split)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._json_key = options.json_key.lower()
        keys = {modality: getattr(options, f"{modality}_key") for modality in MEDIA}
        given = {modality: (key.lower(),) for modality, key in keys.items() if key}
        self._given_media, self._media_parts = bool(given), given or MEDIA
        key = options.target_key
        usual = ["targets", CLASS, "caption"] if options.class_names else ["targets", "caption", CLASS]
        self._target_keys = usual if key is None else [key] if isinstance(key, str) else [*key]
        # Values of the JSON that a part of their name may hold instead.
        self._parts = [options.prompt_key, *self._target_keys]

    def _read(self, split: str) -> Sequence[Sample]:
        """Return lazy rows: texts and offsets of media come from the shards' indices, which are built on first use."""
        check_split(split, self.splits)
        shards = self._shards(split)
        invalid = InvalidRows(split, self._options.skip_invalid, lambda: webdataset_index.count_samples(shards))
        table = RowTable(
            [shard.lines for shard in shards], lambda row: self._valid(shards[row.file], row, split, invalid)
        )
        census = Census(table.scan())
        invalid.report(len(census))
        if not census:
            raise UserError(f"{self._given[split]} holds no samples")
        samples = table.samples()
        if repeated := census.repeated(samples):
            earlier, later = (shards[table.row(index).file].address for index in repeated)
            raise UserError(f"{later}: the sample `{short(samples[repeated[1]].id)}` is in {earlier}, too")
        self._check_metric(split, census.answer_types)
        return samples

    def every_row(self, split: str) -> Iterator[Sample | RowError]:
        for number, shard in enumerate(self._shards(split)):
            with shard.lines.open("rb") as file:
                for line, text in enumerate(file, 1):
                    try:
                        yield self._sample(shard, LazyRow(number, line, text), split)
                    except RowError as error:
                        yield error

    def _shards(self, split: str) -> list[IndexedShard]:
        given = str(self._given[split])
        addresses = files_in(given, ".tar")
        if addresses is None:
            addresses = expand(given)
        elif not addresses:
            raise UserError(f"{given} is a folder without a .tar file")
        elif (found := split_shards(Path(given))) and len(found) > 1:
            names = ", ".join(f"`{name}`" for name in found)
            one = found.get(split) or next(iter(found.values()))
            raise UserError(f"{given} holds the splits {names}: give one of them as `{split}`, such as {one}")
        texts = {self._json_key, CAPTION, CLASS, *map(str.lower, self._parts)}
        return webdataset_index.index(addresses, sorted(texts))

    def _valid(self, shard: IndexedShard, row: LazyRow, split: str, invalid: InvalidRows) -> Sample | None:
        """Return the sample of a row; None for an invalid one, which is left out."""
        try:
            return self._sample(shard, row, split)
        except RowError as error:
            invalid.add(error)
            return None

    def _sample(self, shard: IndexedShard, row: LazyRow, split: str) -> Sample:
        found = json.loads(row.text)
        name, parts = found["name"], found["parts"]
        where = f"{shard.address}, sample `{name}`"
        media = self._media(parts, where)
        for part in (part for some in media.values() for part in some):
            if not parts[part][1]:
                raise RowError(f"{where}: its `{part}` is an empty file", "empty-medium")
        record = self._record(found, where, split)
        prompt = self.prompt_of(record, self._options.prompt_key)
        placed = place_media(record, prompt, media, allow_empty=self.may_lack_prompt)
        members = {
            modality: tuple(
                Member(shard.address, parts[part][0], parts[part][1], f"{name}.{part}", shard.version) for part in some
            )
            for modality, some in media.items()
        }
        return Sample(
            id=self._id(record, name),
            media=placed.arrange({key: some if len(some) > 1 else some[0] for key, some in members.items()}),
            prompt=placed.text,
            targets=self.targets_of(record, self._target_keys, split),
            meta=self.with_choices(record, record.meta()),
            marks=placed.marks,
        )

    def _id(self, record: Record, name: str) -> str:
        key = self._options.id_key
        if key is None:
            return name
        if record.values.get(key) is None:
            raise record.lacks([key])
        return id_of(record, name, key)

    def _media(self, parts: dict[str, Any], where: str) -> dict[str, list[str]]:
        """Return the parts with the media of each modality: those named in the recipe, else those that exist."""
        media = {}
        for modality, wanted in self._media_parts.items():
            found = [part for part in wanted if part in parts]
            if len(found) > 1:
                names = " and ".join(f"`{part}`" for part in found)
                raise UserError(f"{where}: {names} could both be its {modality}; choose by `{modality}_key`")
            if not found and self._given_media:
                raise _lacks(wanted, parts, where, "no-medium")
            if found:
                media[modality] = found
        media = media or _numbered(parts)
        if not media:
            raise _lacks([part for wanted in MEDIA.values() for part in wanted], parts, where, "no-medium")
        return media

    def _record(self, found: dict[str, Any], where: str, split: str) -> Record:
        """Return the texts of a sample by key; `found` is its line in the index."""
        texts, key, values = found["texts"], self._json_key, dict[str, Any]()
        for reason in found["unread"].values():
            raise RowError(reason, "not-utf8")
        if key in texts and key != CAPTION:
            values = parse(texts.pop(key).encode(), f"{where}, `{key}`", "one object") or {}
        elif not texts and split != "test":
            raise _lacks([key, CAPTION], found["parts"], where, "no-targets")
        values |= {name: texts[name.lower()].strip() for name in self._parts if name.lower() in texts}
        if CAPTION in texts and CAPTION not in values and values.get("caption") is None:
            values["caption"] = texts[CAPTION].strip()
        record = Record(where, values, (*self._parts, self._options.id_key or ""))
        prompt = self._options.prompt_key
        if prompt not in values and not self.may_lack_prompt and {"caption", CLASS} & values.keys():
            what = "a caption" if values.get("caption") is not None else "a class"
            advice = "`allow_empty_prompt: true` and give `text.template` without `{prompt}`, or `prompt` for all"
            raise record.error(f"{what} and no `{prompt}`: set {advice}", "missing-key")
        return self._with_targets(record)

    def _with_targets(self, record: Record) -> Record:
        """Return a sample's texts with names of classes for numbers, and the targets of several keys at the first."""
        keys, several = self._target_keys, isinstance(self._options.target_key, tuple)
        used = next((key for key in keys if record.values.get(key) is not None), None)
        if used is None or not (several or self.class_names):
            return record
        given = record.gather(keys if several else [used])
        if self.class_names:
            given = class_name(record, used, given, self.class_names)
        return record._replace(values={**record.values, keys[0]: given})


TASK = WebDataset


def split_shards(path: Path) -> dict[str, str]:
    """Return split -> shards, if names in a local folder of shards tell several splits; else an empty dictionary.

    Raises `UserError` if two names could be the same split.
    """
    files = files_in(str(path), ".tar")
    if files is None:
        return {}
    if files:
        return _patterns(path, [Path(file).name for file in files])
    named = [folder for folder in path.iterdir() if split_of(folder.name) and files_in(str(folder), ".tar")]
    return _in_order(path, [(folder.name, str(folder)) for folder in named])


def _patterns(path: Path, names: Sequence[str]) -> dict[str, str]:
    words: dict[str, list[str]] = {}
    for name in names:
        for word in dict.fromkeys(re.findall("[A-Za-z]+", name)):
            if split_of(word):
                words.setdefault(word, []).append(name)
    if len(words) < 2 or sum(map(len, words.values())) != len(names):
        return {}
    found = []
    for word, own in words.items():
        fitting = (f"{word}*.tar", f"*{word}*.tar")
        pattern = next((one for one in fitting if [name for name in names if fnmatchcase(name, one)] == own), None)
        if pattern is None:
            raise UserError(f"{path}: some shards are called `{word}`, others are not: give the shards of each split")
        found.append((word, f"{path}/{pattern}"))
    return _in_order(path, found)


def _in_order(path: Path, named: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in SPLIT_NAMES:
        some = sorted(pair for pair in named if split_of(pair[0]) == split)
        if len(some) > 1:
            raise UserError(
                f"{path}: {some[0][1]} and {some[1][1]} could both be the split `{split}`: give one of them"
            )
        if some:
            found[split] = some[0][1]
    return found


def _numbered(parts: Iterable[str]) -> dict[str, list[str]]:
    """Return the parts of each modality that are numbered (`0.jpg`, `1.jpg`), in the order of their numbers.

    Nothing for a modality whose parts have several names, or a number twice.
    """
    found: dict[str, dict[int, str]] = {}
    names: dict[str, list[str]] = {}
    for part in parts:
        match = _NUMBERED.fullmatch(part)
        modality = modality_of(part) if match else None
        if match and modality:
            found.setdefault(modality, {})[int(match[2])] = part
            names.setdefault(modality, []).append(match[1])
    return {
        modality: [numbered[number] for number in sorted(numbered)]
        for modality, numbered in found.items()
        if len({*names[modality]}) == 1 and len(names[modality]) == len(numbered)
    }


def _lacks(wanted: Sequence[str], parts: dict[str, Any], where: str, kind: str) -> RowError:
    names, there = (", ".join(f"`{part}`" for part in some) for some in (wanted, parts))
    return RowError(f"{where}: it lacks a part {names.replace(', ', ' or ')}; it has {there}", kind)
