"""The user's own data: a text file with one JSON object a line.

    {"image": "pictures/1.jpg", "prompt": "What animal is this?", "targets": ["a cat", "cat"]}

`image`, `audio` and `video` are files, relative to the folder of the text file; `null` where a row has none.
`targets` is one string or several, of which each counts as right. Optional are `id` and any other keys, which
become the sample's `meta`; `answer_type` among them gives an accuracy of its own to each of its values.
"""

from __future__ import annotations

import difflib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from perceptune import storage
from perceptune.errors import UserError, nearest
from perceptune.lazy import Census, Row, Table, read_lines
from perceptune.records import Record, RowError, parse, short
from perceptune.tasks.base import Examined, GivenFiles, Task, check_split
from perceptune.types import Sample

MODALITIES = ("image", "audio", "video")
_KEYS = (*MODALITIES, "prompt", "targets", "id")


class JSONLines(GivenFiles):
    """Splits are the files that were given."""

    class Options(Task.Options):
        """One file for each split, plain or gzipped, and how strictly its rows are read."""

        train: Path
        validation: Path | None = None
        test: Path | None = None
        metric: str = "accuracy"
        lowercase: bool = False
        allow_empty_prompt: bool = False  # for captions, whose template holds all the text there is
        check_files: bool = True  # look for every media file before the first step

    def samples(self, split: str) -> Sequence[Sample]:
        """Lazy: the file is gone through and checked once, then a row is read whenever it is asked for."""
        check_split(split, self.splits)
        path = self._given[split]
        table = Table([_plain(path)], lambda row: self._sample(row, split))
        census, absent = Census(), _Absent()
        for index, sample in enumerate(table.scan()):
            census.add(sample)
            if self._options.check_files:
                absent.look(index, sample)
        if not census:
            raise UserError(f"{path} holds no samples")
        samples = table.samples()
        if repeated := census.repeated(samples):
            earlier, later = (table.row(index).line for index in repeated)
            raise UserError(
                f"{path}, line {later}: the id `{short(samples[repeated[1]].id)}` is that of line {earlier}, too"
            )
        if absent.first:
            index, key, file = absent.first
            record = _record(table.row(index), path)
            assert record is not None  # it has given a sample
            raise record.error(f"cannot read `{key}` {short(record.text(key))}: {_missing(file)}{absent.others()}")
        self._check_metric(split, census.answer_types)
        return samples

    def examine(self, split: str) -> Examined:
        """Every line with its own mistake. Raises `UserError` for a file that is not there."""
        check_split(split, self.splits)
        path = self._given[split]
        if problem := _missing(path):
            raise UserError(f"cannot read {path}: {problem}")
        return Examined(self._examined(split), f"{path}, line", partial(_form, path))

    def _examined(self, split: str) -> Iterator[tuple[int, Sample | UserError]]:
        path, line, answer_types, mistaken = self._given[split], 0, set(), False
        try:
            with _plain(path).open("rb") as file:
                for line, (text, _) in enumerate(read_lines(file), 1):
                    try:
                        sample = self._sample(Row(0, line, text), split)
                    except UserError as error:
                        mistaken = True
                        yield line, error
                        continue
                    if sample is not None:
                        answer_types.add(sample.meta.get("answer_type", ""))
                        yield line, sample
        except UserError as error:
            yield line, error
            return
        if not answer_types:
            if not mistaken:
                yield line, RowError(f"{path} holds no samples", "no-samples")
            return
        try:
            self._check_metric(split, answer_types)
        except UserError as error:
            yield line, error

    def _sample(self, row: Row, split: str) -> Sample | None:
        path: Path = self._given[split]
        record = _record(row, path)
        if record is None:
            return None
        return Sample(
            id=_id(record, f"{split}-{row.line:06d}"),  # leads back to the line
            media=_media(record, path.parent),
            prompt=record.prompt("prompt", allow_empty=self._options.allow_empty_prompt),
            # Training and choosing the best checkpoint need targets; a test file may hold questions only.
            targets=record.targets(["targets"], self.clean, needed=split != "test"),
            meta=record.meta(),
        )


TASK = JSONLines


def _record(row: Row, path: Path) -> Record | None:
    """The object of a line; blank lines are passed over."""
    where = f"{path}, line {row.line}"
    values = parse(row.text, where, "one object a line", "utf-8-sig" if row.line == 1 else "utf-8")
    return None if values is None else Record(where, values, _KEYS)


def _plain(path: Path) -> Path:
    """The file itself, or what is gzipped in it, whatever its name."""
    if problem := _missing(path):
        raise UserError(f"cannot read {path}: {problem}")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not zipped:
        return path
    name = str(path.absolute())
    return storage.derived(f"unzipped {name}", storage.version(name)[1], lambda: _unzipped(path))


def _form(path: Path) -> list[str]:
    """What a reader might stumble over in a file, and this one does not."""
    plain = _plain(path)
    with plain.open("rb") as file:
        text, _ = next(read_lines(file), (b"", 0))
    found = {"gzipped": plain != path, "a byte order mark": text.startswith(b"\xef\xbb\xbf"),
             "lines end in CRLF": text.endswith(b"\r\n")}  # fmt: skip
    return [name for name, there in found.items() if there]


def _unzipped(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            while chunk := file.read(2**20):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _id(record: Record, default: str) -> str:
    match record.values.get("id"):
        case None:
            return default
        case int(value) if not isinstance(value, bool):
            return str(value)
    if not record.text("id").strip():
        raise record.error("`id` is empty", "empty-id")
    return record.text("id")


def _media(record: Record, folder: Path) -> dict[str, Path]:
    if not record.values.keys() & set(MODALITIES):
        raise record.lacks(MODALITIES)
    media = {}
    for key in MODALITIES:
        if record.values.get(key) is None:
            continue
        name = record.text(key)
        if not name.strip():
            raise record.error(f"`{key}` is empty; write null if the row has none", "empty-medium")
        if "://" in name or name.startswith("data:"):
            raise record.error(f"`{key}` is an address, not a file: {short(name)}", "address")
        media[key] = folder / name
    return media


class _Absent:
    """Media that are not there. Decoding those that are is left to the moment they are needed."""

    def __init__(self) -> None:
        self._is_file = lru_cache(maxsize=10_000)(_is_file)  # neighbours often ask about one picture
        self._hashes: set[int] = set()
        self.first: tuple[int, str, Path] | None = None  # index of a sample, modality, file

    def look(self, index: int, sample: Sample) -> None:
        """Notes which media of the next sample are no files."""
        for key, medium in sample.media.items():
            if isinstance(medium, Path) and not self._is_file(medium):
                self.first = self.first or (index, key, medium)
                self._hashes.add(hash(medium))

    def others(self) -> str:
        """How many there are beside the first."""
        return f" (and {len(self._hashes) - 1} more files are missing)" if len(self._hashes) > 1 else ""


def _missing(path: Path) -> str:
    """Why `path` is not a file, with the nearest existing name; empty when it is one."""
    if _is_file(path):
        return ""
    try:
        if path.is_dir():
            return "it is a folder"
        name, folder = path.name, path.absolute().parent
        while not folder.is_dir() and folder != folder.parent:
            name, folder = folder.name, folder.parent
        close = difflib.get_close_matches(name, sorted(entry.name for entry in folder.iterdir()), n=1)
    except OSError as error:
        return error.strerror or str(error)
    # `nearest` would list a folder of thousands when no name is close.
    return f"{folder} holds no `{short(name)}`{nearest(name, close)}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder without permission
        return False
