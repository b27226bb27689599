"""The user's own data: a text file with one JSON object a line.

    {"image": "pictures/1.jpg", "prompt": "What animal is this?", "targets": ["a cat", "cat"]}

`image`, `audio` and `video` are files, relative to the folder of the text file; `null` where a row has none.
`targets` is one string or several, of which each counts as right. Optional are `id` and any other keys, which
become the sample's `meta`; `answer_type` among them gives an accuracy of its own to each of its values.
"""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from perceptune.errors import UserError, nearest
from perceptune.metrics import exact
from perceptune.tasks.base import Task, check_split, exact_match
from perceptune.types import Sample

MODALITIES = ("image", "audio", "video")
_KEYS = (*MODALITIES, "prompt", "targets", "id")


class JSONLines(Task):
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

    def __init__(self, options: Options) -> None:
        files = {"train": options.train, "validation": options.validation, "test": options.test}
        self._files = {split: path for split, path in files.items() if path is not None}
        self._options = options
        self.splits = tuple(self._files)
        self.metric = options.metric
        self.lowercase = options.lowercase

    def samples(self, split: str) -> list[Sample]:
        check_split(split, self.splits)
        path = self._files[split]
        rows = list(_rows(path))
        found = [self._sample(row, split) for row in rows]
        if not found:
            raise UserError(f"{path} holds no samples")
        _check_ids(rows, found)
        if self._options.check_files:
            _check_files(rows)
        if split == ("validation" if "validation" in self.splits else self.splits[-1]):
            self._check_metric(path, found)
        return found

    def score(
        self, predictions: Sequence[str], samples: Sequence[Sample]
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """`accuracy`, and `accuracy_<answer_type>` for each type among the samples."""
        return exact_match(self, predictions, samples)

    def _sample(self, row: _Row, split: str) -> Sample:
        return Sample(
            id=_id(row, split),
            media=_media(row),
            prompt=_prompt(row, self._options.allow_empty_prompt),
            # Training and choosing the best checkpoint need targets; a test file may hold questions only.
            targets=_targets(row, self, needed=split != "test"),
            meta=_meta(row),
        )

    def _check_metric(self, path: Path, samples: Iterable[Sample]) -> None:
        """The split that chooses the best checkpoint must yield the metric: better said before training."""
        keys = {exact.group_key(sample.meta.get("answer_type", "")) or "accuracy" for sample in samples}
        keys.add("accuracy")
        if self.metric not in keys:
            raise UserError(f"{path} gives no metric `{self.metric}`{nearest(self.metric, keys)}")


TASK = JSONLines


class _Row(NamedTuple):
    """One object of the file; its errors name the file, the line and the key."""

    path: Path
    line: int
    values: dict[str, Any]

    def error(self, message: str) -> UserError:
        return UserError(f"{self.path}, line {self.line}: {message}")

    def lacks(self, wanted: Sequence[str]) -> UserError:
        """The error for a row with none of the `wanted` keys: most often one of them is misspelt."""
        names = " or ".join(f"`{key}`" for key in wanted)
        for key in self.values:
            if key not in _KEYS and (close := difflib.get_close_matches(key, wanted, n=1, cutoff=0.6)):
                return self.error(f"no key {names}, but `{key}`; did you mean `{close[0]}`?")
        found = ", ".join(f"`{key}`" for key in self.values) or "none"
        return self.error(f"no key {names}; the keys are {found}")

    def text(self, key: str) -> str:
        return self.check_text(key, self.values[key])

    def check_text(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(f"`{key}` is {_json_type(value)}, not a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
            raise self.error(f"`{key}` holds an unpaired surrogate: {_short(ascii(value))}") from error
        return value


def _rows(path: Path) -> Iterator[_Row]:
    """The objects of a file with their line numbers; blank lines are passed over."""
    for number, line in _lines(path):
        row = _Row(path, number, {})
        try:
            # Lines end at "\n" only: `str.splitlines` cuts at U+2028, too, which JSON allows in a string.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            values = json.loads(text) if text else None
        except UnicodeDecodeError as error:
            raise row.error(f"not UTF-8 ({error.reason} at byte {error.start})") from error
        except (ValueError, RecursionError) as error:
            raise row.error(f"invalid JSON: {error}; expected one object on a line of its own") from error
        if not text:
            continue
        if not isinstance(values, dict):
            raise row.error(f"{_json_type(values)}, not an object; expected one object a line")
        yield row._replace(values=values)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, gzipped or not, whatever its name."""
    if problem := _missing(path):
        raise UserError(f"cannot read {path}: {problem}")
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield from enumerate(gzip.GzipFile(fileobj=raw) if zipped else raw, 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _id(row: _Row, split: str) -> str:
    match row.values.get("id"):
        case None:
            return f"{split}-{row.line:06d}"  # leads back to the line
        case int(value) if not isinstance(value, bool):
            return str(value)
    if not row.text("id").strip():
        raise row.error("`id` is empty")
    return row.text("id")


def _media(row: _Row) -> dict[str, Path]:
    if not row.values.keys() & set(MODALITIES):
        raise row.lacks(MODALITIES)
    media = {}
    for key in MODALITIES:
        if row.values.get(key) is None:
            continue
        name = row.text(key)
        if not name.strip():
            raise row.error(f"`{key}` is empty; write null if the row has none")
        if "://" in name or name.startswith("data:"):
            raise row.error(f"`{key}` is an address, not a file: {_short(name)}")
        media[key] = row.path.parent / name
    return media


def _prompt(row: _Row, allow_empty: bool) -> str:
    if row.values.get("prompt") is None and allow_empty:
        return ""
    if "prompt" not in row.values:
        raise row.lacks(["prompt"])
    prompt = row.text("prompt")
    if not allow_empty and not any(character.isalnum() for character in prompt):
        raise row.error(f"`prompt` holds no text: {_short(repr(prompt))} (`allow_empty_prompt: true` permits this)")
    return prompt


def _targets(row: _Row, task: Task, needed: bool) -> tuple[str, ...]:
    value = row.values.get("targets")
    if value is None:
        if needed:
            raise row.error("`targets` is null") if "targets" in row.values else row.lacks(["targets"])
        return ()
    if not isinstance(value, str | list):
        raise row.error(f"`targets` is {_json_type(value)}, not a string or a list of strings")
    targets = [value] if isinstance(value, str) else value
    if not targets:
        raise row.error("`targets` is empty")
    for index, target in enumerate(targets):
        if not task.clean(row.check_text(f"targets[{index}]", target)):  # it would equal the empty answer
            raise row.error(f"`targets` holds no text: {_short(repr(target))}")
    return tuple(targets)


def _meta(row: _Row) -> dict[str, Any]:
    meta = {key: value for key, value in row.values.items() if key not in _KEYS}
    if meta.get("answer_type") is None:
        meta.pop("answer_type", None)
    else:
        row.text("answer_type")
    return meta


def _check_ids(rows: Sequence[_Row], samples: Sequence[Sample]) -> None:
    lines: dict[str, int] = {}
    for row, sample in zip(rows, samples, strict=True):
        if sample.id in lines:
            raise row.error(f"the id `{_short(sample.id)}` is that of line {lines[sample.id]}, too")
        lines[sample.id] = row.line


def _check_files(rows: Sequence[_Row]) -> None:
    """One look at each distinct file; decoding it is left to the moment it is needed."""
    wanted: dict[Path, tuple[_Row, str]] = {}
    for row in rows:
        for key, path in _media(row).items():
            wanted.setdefault(path, (row, key))
    missing = [path for path in wanted if not _is_file(path)]
    if missing:
        row, key = wanted[missing[0]]
        others = f" (and {len(missing) - 1} more files are missing)" if len(missing) > 1 else ""
        raise row.error(f"cannot read `{key}` {_short(row.values[key])}: {_missing(missing[0])}{others}")


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
    return f"{folder} holds no `{_short(name)}`{nearest(name, close)}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder without permission
        return False


def _json_type(value: object) -> str:
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
