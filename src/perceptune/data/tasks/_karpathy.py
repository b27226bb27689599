"""Karpathy's files `dataset_*.json`, which contain the split and the captions of each image."""

from collections.abc import Iterator
from pathlib import Path

from perceptune.data.records import Record
from perceptune.data.tasks._rows import json_rows, read_json
from perceptune.data.tasks._sets import text_of
from perceptune.errors import nearest

_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def karpathy_rows(path: Path, split: str, *, restval: bool = True) -> Iterator[tuple[Record, dict[str, str], Record]]:
    """Yield the images of a split: the row, the fields for the template, and a row with all captions at `raw`.

    With `restval`, that part of COCO's validation images belongs to the training split, as usual in the literature.
    """
    for row in json_rows(read_json(path), path, at="images"):
        part = text_of(row, "split")
        if part not in _SPLITS:
            raise row.error(f"unknown split `{part}`{nearest(part, _SPLITS)}")
        if _SPLITS[part] != split or (part == "restval" and not restval):
            continue
        sentences = json_rows(row.values, Path(row.where), at="sentences")
        raw = [sentence.values.get("raw") for sentence in sentences]
        names = {"filename": text_of(row, "filename"), "filepath": str(row.values.get("filepath") or "")}
        yield row, names, Record(row.where, {"raw": raw}, ("raw",))
