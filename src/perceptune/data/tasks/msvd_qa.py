"""MSVD-QA (Xu et al., 2017): 51,000 questions about 1,970 videos from YouTube, made from their captions.

    train_qa.json  val_qa.json  test_qa.json        lists of {"id", "question", "answer", "video_id": 1}
    youtube_mapping.txt                             lines such as `-4wsuPCjDBc_5_15 vid1`
    YouTubeClips/-4wsuPCjDBc_5_15.avi               without that table: YouTubeClips/vid1.avi

The files of eP-ALM (`video`, `sent`, `label`) are read, too: name them by `annotations`.
"""

from functools import cached_property
from pathlib import Path

from pydantic import Field

from perceptune.data.records import Record
from perceptune.data.tabular import Dialect
from perceptune.data.tasks.base import VideoQuestions, missing, table_rows


class MSVDQA(VideoQuestions):
    """MSVD-QA, scored by exact match. Fields of `template`: `video` (a file's name) and `video_id`."""

    class Options(VideoQuestions.Options):
        """Options of question sets, and the table of names."""

        mapping: Path | None = Field(None, description="mapping file; None = `youtube_mapping.txt`, if it exists")

    template = "YouTubeClips/{video}"

    def video(self, record: Record, number: str) -> str:
        name = f"vid{number.removeprefix('vid')}"
        if self._names is None:
            return f"{name}.avi"
        if name not in self._names:
            raise record.error(f"`video_id` {number}: no video of this number in {self._mapping}")
        return f"{self._names[name]}.avi"

    @property
    def _mapping(self) -> Path:
        return Path(self._options.dir / (self._options.mapping or "youtube_mapping.txt"))

    @cached_property
    def _names(self) -> dict[str, str] | None:
        """Mapping from `vid1` to the video's YouTube name; None without the table."""
        if self._options.mapping is None and missing(self._mapping):
            return None
        names: dict[str, str] = {}
        for row in table_rows(self._mapping, dialect=Dialect(" "), columns=("youtube", "number"), quoted=False):
            if names.setdefault(row.values["number"], row.values["youtube"]) != row.values["youtube"]:
                raise row.error(f"`{row.values['number']}` names two videos")
        return names


TASK = MSVDQA
