"""Recognition of a path: a folder, a file of rows or annotations, shards, or a data set of `datasets`."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from perceptune.config.registry import leaf
from perceptune.data.media.file_types import HEAD, kind_of
from perceptune.data.media.suffixes import MODALITIES, modality_of, suffix_of
from perceptune.data.recognition.annotations import annotation_form
from perceptune.data.recognition.columns import find_columns, number_rows, paths_of, split_note
from perceptune.data.recognition.folders import folder_form
from perceptune.data.recognition.form import Form, split_keys
from perceptune.data.recognition.media_folder import find_folder
from perceptune.data.recognition.rows import FIRST, Rows, file_rows
from perceptune.data.recognition.table_columns import answers_of, told, with_columns, with_metadata
from perceptune.data.tasks.base import is_conversation, is_file, missing
from perceptune.errors import UserError
from perceptune.utils.paths import local_name

_TAR = re.compile(r"\.(tar|tgz)(\.gz)?$")
_COLUMNS = ("image_key", "audio_key", "video_key", "prompt_key", "target_key")


def recognize(
    place: str, *, split: str = "train", media: str | None = None, given: Mapping[str, Any] | None = None
) -> Form:
    """Return the form of the data at `place`, a path or an address, to be read as `split`.

    `media` is the folder of its media, `given` are options of its reader that were given. Raises `UserError` for a path
    that does not exist, an unknown form, and two plausible ones.
    """
    place = local_name(place)
    path = Path(place)
    is_pattern = re.search(r"[*{]", place) and not is_file(path)
    if "://" in place or ((_TAR.search(place) or is_pattern) and not path.is_dir()):
        return Form("WebDataset shards", "webdataset", split_keys(split, place), splits=(split,))

    def of_file(file: Path, split: str) -> Form:
        return _file_form(file, split, media, dict(given or {}))

    if path.is_dir():
        form = folder_form(path, split, of_file)
        if form.reader == "hf-dataset":
            return with_columns(form, path, media, given or {})
        return with_metadata(form, given or {}) if form.reader == "folder" else form
    if problem := missing(path):
        raise UserError(f"cannot read {path}: {problem}{hub_hint(place)}")
    return of_file(path, split)


def hub_hint(place: str) -> str:
    """Return what to do for a name that could be that of a data set on a hub; else an empty text."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not Path(place).parent.exists()
    return "; a data set of a hub is read by --task hf-dataset" if is_name else ""


def _file_form(path: Path, split: str, media: str | None, given: dict[str, Any]) -> Form:
    suffix = suffix_of(path.name.removesuffix(".gz"))
    if suffix in ("parquet", "arrow"):
        return _columnar(path, split, media, given)
    _require_rows(path, suffix)
    if suffix == "xlsx":
        kind = leaf("tasks", "excel").module.TASK
        book = kind(kind.Options(train=path, sheet=given.get("sheet")))
        rows = [row.values for row in islice(book.rows(path, "train"), FIRST)]
        return _rows_form(path, Rows("an Excel sheet", "excel", rows), split, media, given)
    found = file_rows(path, given)
    if found.reader != "csv" and (form := annotation_form(path, found, media, split)):
        return form
    return _rows_form(path, found, split, media, given)


def _require_rows(path: Path, suffix: str) -> None:
    """Raise `UserError` for a file that is known to hold no rows."""
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD))
    if modality_of(path) is not None or (kind and kind.modalities):
        raise UserError(f"{path} is {kind.name if kind else 'a medium'}, one medium without rows: name its folder")
    if kind and kind.name == "a zip file" and suffix != "xlsx":
        raise UserError(f"{path} is a zip file: unpack it and name the folder")
    known = {"xls": "an old Excel file: save it as .xlsx or .csv", "yaml": "a YAML file", "yml": "a YAML file"}
    if suffix in known or (kind and not _is_readable(kind.name)):
        what = known.get(suffix) or (kind.name if kind else "")
        raise UserError(f"{path} is {what}; data is a folder, JSON, CSV, TSV, Excel (.xlsx), parquet, or tar shards")


def _is_readable(name: str) -> bool:
    return name in ("a JSON text", "a text", "a gzip file", "a zip file") or name.startswith("a text with")


def _rows_form(path: Path, found: Rows, split: str, media: str | None, given: dict[str, Any]) -> Form:
    """Return the form of rows: conversations, or a table whose columns are guessed by their names."""

    if len(found.lists) > 1 and not found.rows:
        raise UserError(f"{path}: several lists, {', '.join(f'`{key}`' for key in found.lists)}: choose one by "
                        "--task json task.rows_key=NAME")  # fmt: skip
    if not found.rows:
        raise UserError(f"{path} holds no rows")
    if all(map(is_conversation, found.rows[:20])):
        has_turns = any("conversations" in row for row in found.rows)
        names = [name for row in found.rows for name in conversation_media(row)]
        folder = find_folder(names, path, media)
        return Form("conversations", "llava" if has_turns else "messages", _read(path, split, folder), splits=(split,))
    columns = find_columns(found.rows, str(path), given)
    kind = leaf("tasks", found.reader).module.TASK
    own = {key: kind.Options.model_fields[key].default for key in _COLUMNS}
    chosen = {key: value for key, value in columns.options(own).items() if key not in given}
    if columns.targets in ("targets", "caption"):
        chosen.pop("target_key", None)  # the readers' own names
    names = [name for key in columns.media.values() for row in found.rows for name in paths_of(row.get(key))]
    folder = find_folder(names, path, media)
    options = {**found.options, **chosen, **_read(path, split, folder)}
    numbered = number_rows(found.rows, given) if "number_rows" in kind.Options.model_fields else {}
    options |= dict.fromkeys(numbered, True)
    guesses = (*told(chosen), *numbered.values(), *split_note(found.rows))
    return Form(found.what, found.reader, options, guesses, answers_of(columns), (split,))


def conversation_media(row: Mapping[str, Any]) -> list[str]:
    """Return the names of media that a conversation's row names outside its turns."""
    found = []
    for modality in MODALITIES:
        for key in (modality, f"{modality}s"):
            found += paths_of(row.get(key))
    return found


def _columnar(path: Path, split: str, media: str | None, given: dict[str, Any]) -> Form:
    """Return the form of a parquet or Arrow file, which `datasets` reads as one split `train`."""
    what = "a parquet file" if path.suffix == ".parquet" else "an Arrow file"
    splits = {"train": "train"} if split == "train" else {"train": "train", split: "train"}
    return with_columns(Form(what, "hf-dataset", {"path": str(path), **splits}, splits=(split,)), path, media, given)


def _read(path: Path, split: str, folder: Path | None) -> dict[str, Any]:
    """Return the keys of the file and of the folder of its media."""
    return {**split_keys(split, path), **({} if folder is None else {"media": str(folder)})}
