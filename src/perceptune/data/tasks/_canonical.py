"""A sample as a row of task `jsonl`, and so as a file that any other program can read."""

import os
from pathlib import Path
from typing import Any

from perceptune.errors import UserError
from perceptune.types import Sample


def to_row(sample: Sample, folder: Path | None = None) -> dict[str, Any]:
    """The JSON object of a sample; its media relative to `folder`, where the file will lie, or absolute.

    Raises `UserError` for a medium that is no file of its own.
    """
    media = {}
    for modality, medium in sample.media.items():
        if not isinstance(medium, Path):
            raise UserError(f"sample `{sample.id}`: its {modality} is no file of its own but {str(medium)[:80]}")
        path = medium.absolute()
        media[modality] = (path if folder is None else Path(os.path.relpath(path, folder.absolute()))).as_posix()
    return {"id": sample.id, **(media or {"image": None}), "prompt": sample.prompt,
            **({"targets": list(sample.targets)} if sample.targets else {}), **sample.meta}  # fmt: skip
