"""Caption files in COCO's form: images and their captions as two lists."""

from collections.abc import Iterator
from pathlib import Path

from perceptune.data.records import Record
from perceptune.data.tasks._rows import json_rows, read_json
from perceptune.data.tasks._sets import text_of


def coco_rows(path: Path) -> Iterator[tuple[Record, list[Record]]]:
    """Yield each image with its annotations, if they are public. Raises `UserError` for an unknown image."""
    document = read_json(path)
    captions: dict[str, list[Record]] = {}
    images: dict[str, Record] = {}
    for row in json_rows(document, path, at="images"):
        name = text_of(row, "id")
        if images.setdefault(name, row) is not row:
            raise row.error(f"the id `{name}` is that of {images[name].where}, too")
        captions[name] = []
    for row in json_rows(document, path, at="annotations") if "annotations" in document else ():
        name = text_of(row, "image_id")
        if name not in captions:
            raise row.error(f"there is no image with the id `{name}`")
        captions[name].append(row)
    for name, image in images.items():
        yield image, captions[name]
