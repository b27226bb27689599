"""AudioCaps (Kim et al., 2019): captions of 10-second audio from YouTube, of which many are gone.

    train.csv  val.csv  test.csv        columns audiocap_id, youtube_id, start_time, caption; five rows a video in two
    audios/--L22BmDI6E.wav              another place or name by `media` and `template`

The files of eP-ALM, lists of `{"audio", "caption"}`, are read, too: name them by `annotations`.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from perceptune.data.records import Record
from perceptune.data.tasks import base

_KEYS = ("audio", "audiocap_id", "youtube_id", "start_time", "caption")


class AudioCaps(base.CaptionSet):
    """AudioCaps, scored by CIDEr. Fields of `template`: `audio` (file name), `youtube_id`, `start`, `audiocap_id`."""

    class Options(base.CaptionSet.Options):
        """Options of caption sets; by default a fifth of the audio files may be missing."""

        skip_missing: int = Field(10_000, ge=0, description="missing media per split that may be skipped")

    modality = "audio"
    files = base.files_of("{}.csv", train="train", validation="val", test="test")
    template = "audios/{audio}"
    one_row_a_medium = False

    def rows(self, split: str) -> Iterator[base.Captioned]:
        for path in self.annotations(split):
            if ".json" in path.suffixes:
                for record in base.json_rows(base.read_json(path), path, _KEYS):
                    audio = base.text_of(record, "audio")
                    yield self._captioned(record, split, audio, Path(audio).stem)
            else:
                for record in base.table_rows(path, _KEYS):
                    name = base.text_of(record, "youtube_id")
                    number, start = base.text_of(record, "audiocap_id"), base.number_of(record, "start_time")
                    yield self._captioned(record, split, f"{name}.wav", name, start=start, audiocap_id=number)

    def _captioned(
        self, record: Record, split: str, audio: str, name: str, start: object = "", audiocap_id: str = ""
    ) -> base.Captioned:
        media = self.medium(record, audio=audio, youtube_id=name, start=start, audiocap_id=audiocap_id)
        return base.Captioned(record, name, media, self.captions(split, record), record.meta())


TASK = AudioCaps
