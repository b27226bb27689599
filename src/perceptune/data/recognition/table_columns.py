"""Columns of metadata and of data sets of `datasets`, whose readers find the media themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perceptune.data.recognition.arrow_rows import arrow_rows
from perceptune.data.recognition.columns import Columns, find_columns, number_rows, paths_of, split_note
from perceptune.data.recognition.form import Form
from perceptune.data.recognition.media_folder import find_folder
from perceptune.data.recognition.rows import file_rows
from perceptune.data.splits import METADATA

_OWN = {"prompt_key": "prompt", "target_key": "targets"}
_ROLES = {
    "image_key": "image",
    "audio_key": "audio",
    "video_key": "video",
    "prompt_key": "prompt",
    "target_key": "answer",
}


def with_columns(form: Form, path: Path, media: str | None, given: Mapping[str, Any]) -> Form:
    """Return the form of a data set of `datasets` with the columns of its questions and answers.

    Its reader finds media by their type; columns with names of files are guessed by their values.
    """
    rows = arrow_rows(path)
    columns = find_columns(rows, str(path), given)
    named = {modality: column for modality, column in columns.media.items() if _holds_names(rows[0].get(column))}
    names = [name for column in named.values() for row in rows for name in paths_of(row.get(column))]
    folder = find_folder(names, path, media) if named else None
    form = form if folder is None else replace(form, options={**form.options, "media": str(folder)})
    return _guessed(form, rows, columns, named, given)


def with_metadata(form: Form, given: Mapping[str, Any]) -> Form:
    """Return the form of a folder with the columns of its metadata, if it has any."""
    folder = Path(form.options[form.splits[0]])
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if not files:
        files = sorted(file for name in METADATA for file in folder.rglob(name))[:1]
    if not files:
        return form
    rows = arrow_rows(files[0]) if files[0].suffix == ".parquet" else file_rows(files[0], given).rows
    columns = find_columns(rows, str(files[0]), given)
    media = {modality: name for modality, name in columns.media.items() if not name.endswith("file_name")}
    return _guessed(form, rows, columns, media, given, number_rows(rows, given))


def _guessed(
    form: Form, rows: Sequence[Mapping[str, Any]], columns: Columns, media: Mapping[str, str],
    given: Mapping[str, Any], numbered: Mapping[str, str] = MappingProxyType({}),
) -> Form:  # fmt: skip
    """Return a form with the columns that its reader would not find by itself; `media` are those of media."""
    names = {"prompt_key": columns.prompt, "target_key": columns.targets}
    names |= {f"{modality}_key": name for modality, name in media.items()}
    known = {key: name for key, name in names.items() if name not in (None, _OWN.get(key)) and key not in given}
    guesses = (*form.guesses, *told(known), *numbered.values(), *split_note(rows))
    options = {**form.options, **known, **dict.fromkeys(numbered, True)}
    return replace(form, options=options, guesses=guesses, answers=answers_of(columns))


def told(chosen: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what was guessed about columns, with the key that says otherwise."""
    return tuple(f"`{_shown(value)}` is the {_ROLES[key]} (task.{key})" for key, value in chosen.items())


def answers_of(columns: Columns) -> str:
    """Return the name of the column with the targets; empty if there is none."""
    targets = columns.targets
    return targets if isinstance(targets, str) else targets[0] if targets else ""


def _holds_names(value: Any) -> bool:
    """Return whether a cell holds the name of a file, or a list of names."""
    return isinstance(value, str) or (isinstance(value, list) and any(isinstance(item, str) for item in value))


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "`, `".join(value)
