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

from perceptune.data.tasks.base import Captioned, CaptionSet, coco_rows, json_rows, karpathy_rows, read_json, text_of

_LAVIS = {"train": "train", "validation": "val", "test": "test"}


class COCOCaptions(CaptionSet):
    """Judged by CIDEr against all captions of an image."""

    class Options(CaptionSet.Options):
        """Those of every set of captions, and whose files they are."""

        format: Literal["karpathy", "lavis", "official"] = Field(
            "karpathy", description="source of the annotation files"
        )
        restval: bool = Field(True, description="format `karpathy`: add its part `restval` to training")

    template: ClassVar = {"karpathy": "{filepath}/{filename}", "lavis": "{image}", "official": "{subset}/{file_name}"}
    one_row_a_medium = False

    def published(self) -> dict[str, tuple[str, ...]]:
        match self._options.format:
            case "karpathy":
                return dict.fromkeys(_LAVIS, ("dataset_coco.json",))
            case "lavis":
                return {split: (f"coco_karpathy_{name}.json",) for split, name in _LAVIS.items()}
        names = {"train": "train2014", "validation": "val2014"}
        return {split: (f"annotations/captions_{name}.json",) for split, name in names.items()}

    def rows(self, split: str) -> Iterator[Captioned]:
        make = {"karpathy": self._karpathy, "lavis": self._lavis, "official": self._official}[self._options.format]
        for path in self.annotations(split):
            yield from make(path, split)

    def _karpathy(self, path: Path, split: str) -> Iterator[Captioned]:
        for row, names, captions in karpathy_rows(path, split, restval=self._options.restval):
            found = self.captions(captions, ["raw"], split)
            yield Captioned(row, text_of(row, "cocoid"), self.medium(row, **names), found)

    def _lavis(self, path: Path, split: str) -> Iterator[Captioned]:
        for row in json_rows(read_json(path), path):
            image = text_of(row, "image")
            name = str(row.values.get("image_id") or Path(image).stem).removeprefix("coco_")
            number = re.fullmatch(r"COCO_\w+_0*(\d+)", name)
            captions = self.captions(row, ["caption"], split)
            yield Captioned(row, number[1] if number else name, self.medium(row, image=image), captions)

    def _official(self, path: Path, split: str) -> Iterator[Captioned]:
        subset = path.name.split(".")[0].removeprefix("captions_")
        for image, captions in coco_rows(path):
            media = self.medium(image, subset=subset, file_name=text_of(image, "file_name"))
            found = tuple(text for row in captions for text in self.captions(row, ["caption"], split))
            yield Captioned(image, text_of(image, "id"), media, found)


TASK = COCOCaptions
