"""TextCaps (Sidorov et al., 2020): captions that read the text in an image, five of each.

`TextCaps_0.1_train.json`, `TextCaps_0.1_val.json`, one row a caption; images are `train_images/0a0bc91825468c45.jpg`,
those of validation, too.
"""

from collections.abc import Iterator

from perceptune.data.tasks.base import Captioned, CaptionSet, files_of, text_of

_KEYS = ("caption_str", "reference_strs")


class TextCaps(CaptionSet):
    """TextCaps, scored by CIDEr against all captions of an image."""

    files = files_of("TextCaps_0.1_{}.json", train="train", validation="val")
    template = "{folder}/{image_id}.jpg"
    one_row_a_medium = False

    def rows(self, split: str) -> Iterator[Captioned]:
        seen: dict[str, str] = {}
        for row in self.json_rows(split, at="data"):
            folder, name = "test_images" if split == "test" else "train_images", text_of(row, "image_id")
            if row.values.get("caption_id") is not None:
                number = text_of(row, "caption_id")
                if seen.setdefault(number, row.where) != row.where:
                    raise row.error(f"the caption_id `{number}` is that of {seen[number]}, too")
            media = self.medium(row, folder=folder, image_id=name)
            yield Captioned(row, name, media, self.captions(split, row, keys=_KEYS))


TASK = TextCaps
