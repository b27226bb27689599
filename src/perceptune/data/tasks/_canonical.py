"""Conversion of samples to rows of tasks `jsonl` and `messages`, which other programs can read too."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceptune.data.records import Record, short
from perceptune.data.tasks._chat_rows import chat_of, media_beside
from perceptune.data.tasks._columns import KEYS
from perceptune.data.tasks._marks import place_media, with_tags
from perceptune.data.tasks._talks import history_in, marks_in, merge_beside, place_in_turns, whole_row
from perceptune.errors import UserError
from perceptune.types import Mark, Medium, Sample


def is_row(sample: Sample) -> bool:
    """Return whether task `jsonl` can hold a sample: one without earlier turns, whose marks are of several media."""
    has_several = any(isinstance(media, tuple) for media in sample.media.values())
    return not sample.history and (has_several or not sample.marks)


def to_row(sample: Sample, folder: Path | None = None) -> dict[str, Any]:
    """Convert a sample to a row of task `jsonl`; media are relative to `folder`, the file's, or absolute without it.
    A column of the meta that has the name of one of these keys has no place in the row.

    Raises `UserError` for a medium that is not a separate file, and for a prompt with text that would be read as tags.
    """
    media = _names(sample, folder)
    prompt = with_tags(sample.prompt, sample.marks)
    files = {modality: names if isinstance(names, list) else [names] for modality, names in media.items()}
    placed = place_media(Record(f"sample `{sample.id}`", {}, ()), prompt, files, allow_empty=True)
    if (placed.text, placed.marks, placed.order) != (sample.prompt, sample.marks, {}):
        raise _unwritable(sample, "its prompt, with tags for its media, would be read as another one")
    return {"id": sample.id, **(media or {"image": None}), "prompt": prompt,
            **({"targets": list(sample.targets)} if sample.targets else {}), **_meta(sample)}  # fmt: skip


def to_messages(sample: Sample, folder: Path | None = None) -> dict[str, Any]:
    """Convert a sample to a row that task `messages` reads with `turns: all`; media are named as in `to_row`.

    Raises `UserError` also for a sample without one answer, or that would be read as another one.
    """
    if len(sample.targets) != 1:
        raise _unwritable(
            sample, f"it has {len(sample.targets)} targets, but beside conversations a row has one answer"
        )
    media = _names(sample, folder)
    turns = []
    for message in sample.history:
        text = with_tags(message.text, message.marks)
        turn: dict[str, Any] = {"role": message.role, "content": text}
        turns.append({**turn, "weight": 0} if message.role == "assistant" and not message.is_target else turn)
    marks = sample.marks or (_marks_in_front(sample) if any(message.marks for message in sample.history) else ())
    turns.append({"role": "user", "content": with_tags(sample.prompt, marks)})
    turns.append({"role": "assistant", "content": sample.targets[0]})
    row = {"id": sample.id, "messages": turns, **{f"{modality}s": names if isinstance(names, list) else [names]
                                                  for modality, names in media.items()}, **_meta(sample)}  # fmt: skip
    _check_messages(sample, row, marks, media)
    return row


def _check_messages(sample: Sample, row: dict[str, Any], marks: tuple[Mark, ...], media: Mapping[str, Any]) -> None:
    """Raise `UserError` if a row would be read as another sample."""
    record = Record(f"sample `{sample.id}`", row, ())
    keys = {modality: (f"{modality}s",) for modality in media}
    chat = chat_of(record, "messages")
    talk = place_in_turns(record, chat.turns, merge_beside(record, [*media_beside(record, keys)]))
    found = whole_row(record, talk) or {}
    own = {"prompt": sample.prompt, "targets": sample.targets[0], **(media or {"image": None})}
    differs = [key for key, value in own.items() if found.get(key) != value]
    if marks_in(found) != marks:
        differs.append("marks")
    if history_in(found) != sample.history:
        differs.append("history")
    if differs:
        raise _unwritable(sample, f"as a conversation, its {differs[0]} would be read as another one")


def _marks_in_front(sample: Sample) -> tuple[Mark, ...]:
    """Return marks for the media of the prompt, which stand in front of it."""
    earlier = [mark.modality for message in sample.history for mark in message.marks]
    return tuple(
        Mark(0, modality)
        for modality in sample.media
        for _ in range(len(sample.list_media(modality)) - earlier.count(modality))
    )


def _names(sample: Sample, folder: Path | None) -> dict[str, Any]:
    def name(modality: str, medium: Medium) -> str:
        if not isinstance(medium, Path):
            raise UserError(f"sample `{sample.id}`: its {modality} is no file of its own but {str(medium)[:80]}")
        path = medium.absolute()
        return (path if folder is None else Path(os.path.relpath(path, folder.absolute()))).as_posix()

    return {
        modality: list(names) if isinstance(names, tuple) else names
        for modality, names in sample.map_media(name).items()
    }


def _meta(sample: Sample) -> dict[str, Any]:
    return {key: value for key, value in sample.meta.items() if key not in KEYS}


def _unwritable(sample: Sample, why: str) -> UserError:
    return UserError(f"sample `{short(sample.id)}` cannot be written: {why}")
