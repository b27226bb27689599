"""WebDataset shards: tar archives of media with their texts, on this machine or wherever fsspec reads.

    000123.jpg  000123.json     members of one sample share their name up to the first dot, which becomes its id
    000124.flac 000124.json
    000124.mp4  000124.json

The JSON object holds `prompt` and `targets` as a row of task `jsonl` does, or a `caption`; a `txt` beside the medium
or in place of the JSON is a caption, too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.data import webdataset_index
from perceptune.data.lazy_rows import Census, LazyRow, RowTable
from perceptune.data.records import Record, parse, short
from perceptune.data.storage import expand
from perceptune.data.tasks.base import MEDIA, GivenFiles, check_split
from perceptune.errors import UserError
from perceptune.types import Member, Sample

CAPTION = "txt"


class WebDataset(GivenFiles):
    """WebDataset shards; splits are the given patterns. Samples are in the order of shards and archives."""

    class Options(GivenFiles.Options):
        """A path or address for each split, with braces and wildcards, and the names of a sample's parts.

        `data/train-{000000..000127}.tar`, `s3://bucket/train-*.tar`, `hf://datasets/user/name/*.tar`
        """

        train: Path | str
        validation: Path | str | None = None
        test: Path | str | None = None
        image_key: str | None = None  # part that is the image; None = the one whose name is an image's suffix
        audio_key: str | None = None  # likewise
        video_key: str | None = None  # likewise; `gif` is a video unless it is the `image_key`
        json_key: str = "json"
        prompt_key: str = "prompt"
        target_key: str | None = None  # None = `targets`, else `caption`, else the part `txt`

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._json_key = options.json_key.lower()
        keys = {modality: getattr(options, f"{modality}_key") for modality in MEDIA}
        given = {modality: (key.lower(),) for modality, key in keys.items() if key}
        self._given_media, self._media_parts = bool(given), given or MEDIA
        self._target_keys = [options.target_key] if options.target_key else ["targets", "caption"]

    def samples(self, split: str) -> Sequence[Sample]:
        """Return lazy rows: texts and offsets of media come from the shards' indices, which are built on first use."""
        check_split(split, self.splits)
        pattern = str(self._given[split])
        shards = webdataset_index.index(expand(pattern), [self._json_key, CAPTION])
        table = RowTable([shard.lines for shard in shards], lambda row: self._sample(shards[row.file], row, split))
        census = Census(table.scan())
        if not census:
            raise UserError(f"{pattern} holds no samples")
        samples = table.samples()
        if repeated := census.repeated(samples):
            earlier, later = (shards[table.row(index).file].address for index in repeated)
            raise UserError(f"{later}: the sample `{short(samples[repeated[1]].id)}` is in {earlier}, too")
        self._check_metric(split, census.answer_types)
        return samples

    def _sample(self, shard: webdataset_index.IndexedShard, row: LazyRow, split: str) -> Sample:
        found = json.loads(row.text)
        name, parts = found["name"], found["parts"]
        where = f"{shard.address}, sample `{name}`"
        media = self._media(parts, where)
        record = self._record(found["texts"], parts, where)
        return Sample(
            id=name,
            media={
                modality: Member(shard.address, parts[part][0], parts[part][1], f"{name}.{part}", shard.version)
                for modality, part in media.items()
            },
            prompt=record.prompt(self._options.prompt_key, allow_empty=self.may_lack_prompt),
            targets=self.targets_of(record, self._target_keys, split),
            meta=self.with_choices(record, record.meta()),
        )

    def _media(self, parts: dict[str, Any], where: str) -> dict[str, str]:
        """Return the part with the medium of each modality: those named in the recipe, else those that exist."""
        media = {}
        for modality, wanted in self._media_parts.items():
            found = [part for part in wanted if part in parts]
            if len(found) > 1:
                names = " and ".join(f"`{part}`" for part in found)
                raise UserError(f"{where}: {names} could both be its {modality}; choose by `{modality}_key`")
            if not found and self._given_media:
                raise _lacks(wanted, parts, where)
            if found:
                media[modality] = found[0]
        if not media:
            raise _lacks([part for wanted in MEDIA.values() for part in wanted], parts, where)
        return media

    def _record(self, texts: dict[str, str], parts: dict[str, Any], where: str) -> Record:
        values: dict[str, Any] = {}
        key = self._json_key
        if key in texts and key != CAPTION:
            values = parse(texts[key].encode(), f"{where}, `{key}`", "one object") or {}
        elif CAPTION not in texts:
            raise _lacks([key, CAPTION], parts, where)
        if CAPTION in texts and values.get("caption") is None:
            values["caption"] = texts[CAPTION].strip()
        prompt = self._options.prompt_key
        if prompt not in values and values.get("caption") is not None and not self.may_lack_prompt:
            advice = "set `allow_empty_prompt: true` and give `text.template` without `{prompt}`"
            raise UserError(f"{where}: a caption and no `{prompt}`: {advice}")
        return Record(where, values, (prompt, *self._target_keys))


TASK = WebDataset


def _lacks(wanted: Sequence[str], parts: dict[str, Any], where: str) -> UserError:
    names, there = (", ".join(f"`{part}`" for part in some) for some in (wanted, parts))
    return UserError(f"{where}: it lacks a part {names.replace(', ', ' or ')}; it has {there}")
