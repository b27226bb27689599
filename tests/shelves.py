"""Made-up data sets for tests of readers: files written as they are published, and the way back from canonical rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.config.recipe import validate
from perceptune.config.registry import leaf
from perceptune.data.tasks.base import Task, to_row
from perceptune.types import Sample

MARK = b"\xef\xbb\xbf"


def put(path: Path, content: Any, *, zipped: bool = False) -> Path:
    """Writes bytes, a text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def media(folder: Path, *names: str) -> None:
    """Empty files: readers look whether they are there, and no further."""
    for name in names:
        put(folder / name, b"")


def task(name: str, **options: Any) -> Task:
    """A task as a recipe names it."""
    module = leaf("tasks", name).module
    made: Task = module.TASK(validate(module.TASK.Options, options, name))
    return made


def there_and_back(samples: Sequence[Sample], folder: Path) -> None:
    """Samples written as a canonical file are read as they are by task `jsonl`."""
    rows = [json.dumps(to_row(sample, folder)) + "\n" for sample in samples]
    path = put(folder / "canonical.jsonl", "".join(rows))
    again = task("jsonl", train=path, test=path, allow_empty_prompt=True).samples("test")
    assert [(s.id, s.prompt, s.targets, dict(s.meta)) for s in again] == [
        (s.id, s.prompt, s.targets, dict(s.meta)) for s in samples
    ]
    for one, other in zip(samples, again, strict=True):
        assert {k: v.resolve() for k, v in one.media.items() if isinstance(v, Path)} == {
            k: v.resolve() for k, v in other.media.items() if isinstance(v, Path)
        }
