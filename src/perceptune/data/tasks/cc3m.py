"""Conceptual Captions (Sharma et al., 2018): three million images of the web, each with a caption.

    Train_GCC-training.tsv      lines `caption<TAB>address`, without a header, as published
    00012/000123456.jpg         the image of line 123,457 as img2dataset saves it (`output_format: files`)

`template` names an image by `row` (counted from 0) and `shard` (ten thousand rows). Where the second column holds
files instead of addresses these are read. Many addresses are dead: missing images are left out and counted. The
shards of img2dataset (`output_format: webdataset`) are read by task `webdataset`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from perceptune.data.records import Record
from perceptune.data.tabular import Dialect
from perceptune.data.tasks.base import Converted, table_rows

_SHARD = 10_000  # rows in a folder of img2dataset


class CC3M(Converted):
    """CC3M, scored by CIDEr. Rows are read on access."""

    class Options(Converted.Options):
        """Options of rows; by default half of the images may be missing."""

        metric: str = "CIDEr"
        skip_missing: int = Field(1_700_000, ge=0, description="missing media per split that may be skipped")
        template: str = Field("{shard:05d}/{row:09d}.jpg", description="path of an image in the folder of media")

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        for row, record in enumerate(table_rows(path, dialect=Dialect("\t"), columns=("caption", "url"), quoted=False)):
            url = record.values["url"]
            values: dict[str, Any] = {"id": f"{row:09d}", "targets": record.values["caption"], "image": url}
            if "://" in url:
                values |= {"image": self._name(record, row), "url": url}
            yield record._replace(values=values)

    def _name(self, record: Record, row: int) -> str:
        try:
            return self._options.template.format(row=row, shard=row // _SHARD)
        except (KeyError, ValueError, IndexError) as error:
            raise record.error(f"`template` {self._options.template!r} cannot be filled in: {error}") from error


TASK = CC3M
