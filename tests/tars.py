"""Tar shards for the tests: made, put somewhere, read as a data set."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec

from perceptune.data.tasks.webdataset import WebDataset
from perceptune.types import Sample

REMOTE = "memory://bucket"
Members = list[tuple[str, bytes]]


def archive(members: Members, kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(place: str, data: bytes) -> None:
    if "://" in place:
        fsspec.filesystem("memory").pipe_file(place.removeprefix("memory:/"), data)
    else:
        Path(place).write_bytes(data)


def row(**more: Any) -> bytes:
    return json.dumps({"prompt": "what?", "targets": ["a cat", "cat"], **more}).encode()


def task(pattern: object, **options: Any) -> WebDataset:
    return WebDataset(WebDataset.Options.model_validate({"train": str(pattern), **options}))


def read(pattern: object, **options: Any) -> list[Sample]:
    return list(task(pattern, **options).samples("train"))


PAIR: Members = [("1.jpg", b"x" * 700), ("1.json", row())]
