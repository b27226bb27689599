"""Atomic writes: a file or folder appears complete or not at all."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perceptune.errors import disk_errors


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write to a temporary file beside `path` and rename it: a crash or a full disk leaves the old file unchanged.

    A killed process leaves a file `.<name>.<anything>.tmp`. Errors of `chunks` and `OSError` pass through.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file atomically. Raises `UserError` if the disk is full or the write fails."""
    with disk_errors(path):
        write_whole(path, chunks)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_chunks` does; bytes of file names that are not UTF-8 are escaped."""
    write_chunks(path, [text.encode(errors="backslashreplace")])


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file as `write_chunks` does."""
    write_text(path, json.dumps(value, indent=2))


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON value per line as `write_chunks` does."""
    write_chunks(path, ((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace") for row in rows))


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to, and rename it to `path` at the end.

    A killed process leaves a folder with a name as in `write_whole`. Errors pass through.
    """
    temporary = _temporary(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
