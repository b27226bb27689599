"""Data sets of the library `datasets`, and parquet files, made for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shelves import media

datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")

N = 4


def rows(**more: tuple[list[Any], Any]) -> Any:
    """Pictures, of which each is of one grey, with questions and classes."""
    grey = [Image.fromarray(np.full((8, 8, 3), 10 * n, np.uint8)) for n in range(N)]
    columns = {
        "picture": (grey, datasets.Image()),
        "prompt": ([f"what é {n}?" for n in range(N)], datasets.Value("string")),
        "label": ([n % 2 for n in range(N)], datasets.ClassLabel(names=["cat", "dog"])),
        "answers": ([["a", "b"]] * N, datasets.List(datasets.Value("string"))),
        **more,
    }
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    return datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)


def save(folder: Path, form: str, data: Any) -> Path:
    if form == "parquet":
        data.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    split = {"dict": datasets.DatasetDict({"train": data}), "single": data}[form]
    split.save_to_disk(folder / "saved")
    return folder / "saved"


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = encoded(Image.new("L", (4, 4)))
BYTES, PATH = {"bytes": PICTURE, "path": None}, {"bytes": None, "path": "in/a.png"}


def table(place: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """A parquet file; columns that are not given are filled in."""
    n = len(next(iter(columns.values())))
    filled = {"prompt": [f"what {n}?" for n in range(n)], "targets": ["a"] * n} | columns
    made = pa.table({name: values for name, values in filled.items() if values is not None})
    media(place.parent, "a.png", "in/a.png")
    pq.write_table(made.replace_schema_metadata(metadata), place)
    return place
