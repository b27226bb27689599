"""`perceptune data convert`: any data set as canonical JSONL, the format of task `jsonl`, or of `messages`."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from perceptune.config.recipe import Recipe, load_recipe
from perceptune.config.registry import leaves
from perceptune.data.build_task import make_task
from perceptune.data.media.remote_media import is_fetched
from perceptune.data.media.source import content
from perceptune.data.records import short
from perceptune.data.tasks.base import Task, check_split, is_row, to_messages, to_row
from perceptune.errors import UserError, disk_errors
from perceptune.tools.datasets.validate import source_recipe
from perceptune.types import Medium, Member, Sample
from perceptune.utils.atomic_io import write_chunks


def convert(
    source: str, to: Path, overrides: Sequence[str] = (), *, split: str | None = None, absolute: bool = False,
    media: Path | None = None, reader: str | None = None,
) -> int:  # fmt: skip
    """Write a split of a task, of a recipe or of data to `to` atomically; return the number of rows.

    If a sample has earlier turns, all of them are written for task `messages` with `turns: all`, else for `jsonl`.

    Media are named relative to the folder of `to`, or absolutely; those in archives are first written into `media`.
    A name that ends in `.gz` is compressed. Raises `UserError` for unreadable data and for several splits without a
    choice.
    """
    recipe = _recipe(source, overrides, split, reader)
    task = make_task(recipe)
    split = _chosen(task, split)
    _require_other_file(recipe, to)
    if not to.parent.is_dir():
        raise UserError(f"cannot write {to}: there is no folder {to.parent}")
    folder, files = to.parent.resolve(), _Files(media)
    written = 0

    def rows(write: Callable[[Sample, Path | None], dict[str, Any]]) -> Iterator[bytes]:
        nonlocal written
        written = 0
        for sample in task.samples(split):
            if write is to_row and not is_row(sample):
                raise _ConversationError
            row = write(files.outside(sample), None if absolute else folder)
            yield json.dumps(row, ensure_ascii=False, separators=(", ", ": ")).encode(errors="backslashreplace") + b"\n"
            written += 1

    def save(write: Callable[[Sample, Path | None], dict[str, Any]]) -> None:
        write_chunks(to, _gzipped(rows(write)) if to.suffix == ".gz" else rows(write))

    try:
        save(to_row)
    except _ConversationError:  # often not the first sample; most data has none, so all are not read twice
        save(to_messages)
    return written


class _ConversationError(Exception):
    """Raised for a sample that is written as a conversation, as all others in its file are then."""


def _recipe(source: str, overrides: Sequence[str], split: str | None, reader: str | None) -> Recipe:
    """Return the recipe of a task by its name with options `task.KEY=VALUE`, else as `data check` does."""
    if not Path(source).exists() and source.replace("_", "-") in leaves("tasks"):
        return load_recipe({"task": {"name": source}}, overrides)
    return source_recipe(source, overrides, split, also=leaves("tasks"), reader=reader)[0]


def _chosen(task: Task, split: str | None) -> str:
    if split is None and len(task.splits) > 1:
        names = ", ".join(f"`{name}`" for name in task.splits)
        raise UserError(f"there are several splits: choose one by `--split`: {names}")
    split = split or task.splits[0]
    check_split(split, task.splits)
    return split


def _require_other_file(recipe: Recipe, to: Path) -> None:
    """Raise `UserError` if the output would overwrite its source."""
    for value in recipe.task.options().values() if recipe.task else ():
        if isinstance(value, str | Path) and Path(value).is_file() and to.exists() and to.samefile(value):
            raise UserError(f"{to} is what is to be converted: choose another name for the result")


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Compress without a time in the header: the same rows give the same file."""
    packer = zlib.compressobj(wbits=31)
    for chunk in chunks:
        if packed := packer.compress(chunk):
            yield packed
    yield packer.flush()


class _Files:
    """Writes media that are not files as files, each once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._resolved = lru_cache(maxsize=10_000)(lambda parent: parent.resolve())

    def outside(self, sample: Sample) -> Sample:
        """Return the sample with every medium as a file; its folder is resolved, as relative paths contain `..`."""
        embedded = count()  # bytes have no names of their own
        return replace(sample, media=sample.map_media(lambda key, medium: self._file(sample, key, medium, embedded)))

    def _file(self, sample: Sample, modality: str, medium: Medium, embedded: Iterator[int]) -> Path:
        if isinstance(medium, Path) and not is_fetched(medium):
            parent: Path = self._resolved(medium.parent)
            return parent / medium.name
        if self._folder is None:
            elsewhere = "a table" if isinstance(medium, bytes) else "the cache"
            where = medium.shard if isinstance(medium, Member) else elsewhere
            what = f"sample `{short(sample.id)}`: its {modality} lies in {where}"
            raise UserError(f"{what}: give `--media DIR`, and it is written there")
        number = next(embedded) if isinstance(medium, bytes) else 0
        name = _safe_name(medium, f"{sample.id}.{number}" if number else sample.id)
        path = self._folder.resolve() / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(medium))  # the rows are written last, atomically
        return path


def _safe_name(medium: Medium, id: str) -> str:
    """Return a name that stays within its folder, as names in archives are untrusted."""
    name = PurePosixPath(f"{id}.bin" if isinstance(medium, bytes) else medium.name)
    if name.is_absolute() or ".." in name.parts or not name.name or "\\" in str(name) or "\0" in str(name):
        raise UserError(f"sample `{short(id)}`: {short(repr(str(name)))} is no name for a file below `--media`")
    return str(name)
