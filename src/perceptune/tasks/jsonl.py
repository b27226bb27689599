"""The user's own data: a text file with one JSON object a line.

    {"image": "pictures/1.jpg", "prompt": "What animal is this?", "targets": ["a cat", "cat"]}

`image`, `audio` and `video` are files, relative to the folder of the text file; `null` where a row has none.
`targets` is one string or several, of which each counts as right. Optional are `id` and any other keys, which
become the sample's `meta`; `answer_type` among them gives an accuracy of its own to each of its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from perceptune.errors import UserError
from perceptune.lazy import Census, Row, Table, read_lines
from perceptune.records import Record, RowError, parse, short
from perceptune.tasks.base import Absent, Examined, GivenFiles, Task, check_split, missing, plain
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
        table = Table([plain(path)], lambda row: self._sample(row, split))
        census, absent = Census(), Absent()
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
            raise record.error(f"cannot read `{key}` {short(record.text(key))}: {missing(file)}{absent.others()}")
        self._check_metric(split, census.answer_types)
        return samples

    def examine(self, split: str) -> Examined:
        """Every line with its own mistake. Raises `UserError` for a file that is not there."""
        check_split(split, self.splits)
        path = self._given[split]
        if problem := missing(path):
            raise UserError(f"cannot read {path}: {problem}")
        return Examined(self._examined(split), f"{path}, line", partial(_form, path))

    def _examined(self, split: str) -> Iterator[tuple[int, Sample | UserError]]:
        path, line, answer_types, mistaken = self._given[split], 0, set(), False
        try:
            with plain(path).open("rb") as file:
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


def _form(path: Path) -> list[str]:
    """What a reader might stumble over in a file, and this one does not."""
    unzipped = plain(path)
    with unzipped.open("rb") as file:
        text, _ = next(read_lines(file), (b"", 0))
    found = {"gzipped": unzipped != path, "a byte order mark": text.startswith(b"\xef\xbb\xbf"),
             "lines end in CRLF": text.endswith(b"\r\n")}  # fmt: skip
    return [name for name, there in found.items() if there]


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
