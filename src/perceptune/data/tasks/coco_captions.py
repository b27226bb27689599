"""COCO captions (Chen et al., 2015): five or more captions an image.

    karpathy   dataset_coco.json: Karpathy's split, with its restval in training
    lavis      coco_karpathy_train.json, coco_karpathy_val.json, coco_karpathy_test.json, as BLIP and LAVIS have them
    official   annotations/captions_train2014.json, annotations/captions_val2014.json (or those of 2017)

Images are `val2014/COCO_val2014_000000391895.jpg`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from perceptune.data.tasks.base import Captioned, CaptionSet, coco_rows, files_of, karpathy_rows, text_of

_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class COCOCaptions(CaptionSet):
    """COCO captions, scored by CIDEr against all captions of an image."""

    class Options(CaptionSet.Options):
        """Options of every set of captions, and the format of the files."""

        format: Literal["karpathy", "lavis", "official"] = Field(
            "karpathy", description="source of the annotation files"
        )
        restval: bool = Field(True, description="format `karpathy`: add its part `restval` to training")

    files: ClassVar = {
        "karpathy": files_of("dataset_coco.json", **_SPLITS),
        "lavis": files_of("coco_karpathy_{}.json", **_SPLITS),
        "official": files_of("annotations/captions_{}.json", train="train2014", validation="val2014"),
    }
    template: ClassVar = {"karpathy": "{filepath}/{filename}", "lavis": "{image}", "official": "{subset}/{file_name}"}
    one_row_a_medium = False

    def rows(self, split: str) -> Iterator[Captioned]:
        forms = {"karpathy": self._karpathy, "lavis": self._lavis, "official": self._official}
        return forms[self._options.format](split)

    def _karpathy(self, split: str) -> Iterator[Captioned]:
        for path in self.annotations(split):
            for row, names, captions in karpathy_rows(path, split, restval=self._options.restval):
                found = self.captions(split, captions, keys=["raw"])
                yield Captioned(row, text_of(row, "cocoid"), self.medium(row, **names), found)

    def _lavis(self, split: str) -> Iterator[Captioned]:
        for row in self.json_rows(split):
            image = text_of(row, "image")
            name = str(row.values.get("image_id") or Path(image).stem).removeprefix("coco_")
            number = re.fullmatch(r"COCO_\w+_0*(\d+)", name)
            captions = self.captions(split, row)
            yield Captioned(row, number[1] if number else name, self.medium(row, image=image), captions)

    def _official(self, split: str) -> Iterator[Captioned]:
        for path in self.annotations(split):
            subset = path.name.split(".")[0].removeprefix("captions_")
            for image, captions in coco_rows(path):
                media = self.medium(image, subset=subset, file_name=text_of(image, "file_name"))
                yield Captioned(image, text_of(image, "id"), media, self.captions(split, *captions))


TASK = COCOCaptions
