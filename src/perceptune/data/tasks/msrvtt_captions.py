"""MSR-VTT (Xu et al., 2016): 10,000 videos with 20 captions each.

    train_val_videodatainfo.json  test_videodatainfo.json    as published, splits of 6,513, 497 and 2,990 videos
    MSRVTT_train.9k.csv  MSRVTT_JSFUSION_test.csv            lists of videos for `partition: 1k-A`
    videos/all/video0.mp4                                    another place or name by `media` and `template`

One file of all videos can be given for each split (`annotations`): a video belongs to the split that it names. The
files of eP-ALM and ALPRO, lists of `{"video", "caption"}`, are read as they are.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from perceptune.data.records import Record
from perceptune.data.tasks.base import Captioned, CaptionSet, files_of, json_rows, read_json, table_rows, text_of

_OFFICIAL = {"train": "train", "validation": "validate", "test": "test"}
_LISTS = {"train": Path("MSRVTT_train.9k.csv"), "test": Path("MSRVTT_JSFUSION_test.csv")}


class MSRVTTCaptions(CaptionSet):
    """MSR-VTT, scored by CIDEr. Fields of `template`: `video` (a file's name) and `video_id`."""

    class Options(CaptionSet.Options):
        """Options of caption sets, and the partition of videos into splits."""

        partition: Literal["official", "1k-A"] = "official"
        lists: dict[str, Path] = Field(
            _LISTS, description="with `1k-A`: split → table of its videos, with a column `video_id`"
        )

    modality = "video"
    files = files_of("{}_videodatainfo.json", train="train_val", validation="train_val", test="test")
    template = "videos/all/{video}"
    one_row_a_medium = False

    def published(self) -> dict[str, tuple[str, ...]]:
        if self._options.partition == "official":
            return super().published()
        return dict.fromkeys(self._options.lists, (*self.files["train"], *self.files["test"]))

    def rows(self, split: str) -> Iterator[Captioned]:
        listed = self._listed(split)
        for path in self.annotations(split):
            document = read_json(path)
            if isinstance(document, list):
                yield from self._plain_rows(document, path, split)
                continue
            sentences = defaultdict[str, list[Record]](list)
            for row in json_rows(document, path, ("video_id", "sen_id", "caption"), at="sentences"):
                sentences[text_of(row, "video_id")].append(row)
            for record in json_rows(document, path, ("video_id", "split", "id"), at="videos"):
                name = text_of(record, "video_id")
                if listed is None:
                    belongs = text_of(record, "split") == _OFFICIAL.get(split, split)
                else:
                    belongs = listed.pop(name, None) is not None
                if belongs:
                    yield self._video(record, name, sentences[name], split)
        for name, row in (listed or {}).items():
            raise row.error(f"`{name}` is no video of {' or '.join(map(str, self.annotations(split)))}")

    def _listed(self, split: str) -> dict[str, Record] | None:
        """Return the videos of a split of `1k-A`; None if the videos name their split."""
        if self._options.partition == "official" or split not in self._options.lists:
            return None
        rows = table_rows(self._options.dir / self._options.lists[split], ("video_id",))
        return {text_of(row, "video_id"): row for row in rows}

    def _video(self, record: Record, name: str, sentences: list[Record], split: str) -> Captioned:
        captions = self.captions(split, *sentences)
        if not captions and split != "test" and not self._options.skip_empty:
            raise record.error(f"no sentence is about `{name}`")
        media = self.medium(record, video=f"{name}.mp4", video_id=name)
        category = record.values.get("category")
        return Captioned(record, name, media, captions, {} if category is None else {"category": category})

    def _plain_rows(self, document: list[Any], path: Path, split: str) -> Iterator[Captioned]:
        for record in json_rows(document, path, ("video", "caption")):
            video = text_of(record, "video")
            media = self.medium(record, video=video, video_id=Path(video).stem)
            yield Captioned(record, Path(video).stem, media, self.captions(split, record), record.meta())


TASK = MSRVTTCaptions
