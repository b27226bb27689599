"""Clotho (Drossos et al., 2020): audio of 15 to 30 seconds with five captions each.

clotho_captions_development.csv  ..._validation.csv  ..._evaluation.csv      columns file_name, caption_1 to caption_5
development/Distorted AM Radio noise.wav                                     and so on: a folder for each split
"""

from collections.abc import Iterator

from perceptune.data.tasks.base import Captioned, CaptionSet, files_of, table_rows, text_of

_FOLDERS = {"train": "development", "validation": "validation", "test": "evaluation"}
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


class Clotho(CaptionSet):
    """Clotho, scored by CIDEr. Fields of `template`: `file_name` and `split`, the name of the authors' folder."""

    modality = "audio"
    files = files_of("clotho_captions_{}.csv", **_FOLDERS)
    template = "{split}/{file_name}"

    def rows(self, split: str) -> Iterator[Captioned]:
        for path in self.annotations(split):
            for record in table_rows(path, ("file_name", *_CAPTIONS)):
                name = text_of(record, "file_name")
                captions = tuple(text for key in _CAPTIONS for text in self.captions(split, record, keys=(key,)))
                media = self.medium(record, file_name=name, split=_FOLDERS.get(split, split))
                yield Captioned(record, name, media, captions, record.meta())


TASK = Clotho
