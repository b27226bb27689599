"""Conversion of samples to rows of task `jsonl`, which other programs can read too."""

import os
from pathlib import Path
from typing import Any

from perceptune.data.tasks._columns import KEYS
from perceptune.errors import UserError
from perceptune.types import Sample


def to_row(sample: Sample, folder: Path | None = None) -> dict[str, Any]:
    """Convert a sample to a JSON object; media are relative to `folder`, the file's, or absolute without it.
    A column of the meta that has the name of one of these keys has no place in the row.

    Raises `UserError` for a medium that is not a separate file.
    """
    media = {}
    for modality, medium in sample.media.items():
        if not isinstance(medium, Path):
            raise UserError(f"sample `{sample.id}`: its {modality} is no file of its own but {str(medium)[:80]}")
        path = medium.absolute()
        media[modality] = (path if folder is None else Path(os.path.relpath(path, folder.absolute()))).as_posix()
    return {"id": sample.id, **(media or {"image": None}), "prompt": sample.prompt,
            **({"targets": list(sample.targets)} if sample.targets else {}),
            **{key: value for key, value in sample.meta.items() if key not in KEYS}}  # fmt: skip
