"""A recognised data set as the keys of a recipe's `task`, and the line that says what it was taken for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perceptune.config.hold_out import VALIDATION
from perceptune.config.overrides import put, typed
from perceptune.config.recipe import Recipe
from perceptune.config.registry import leaf
from perceptune.data.build_task import data_keys, validation_keys
from perceptune.data.recognition.form import Form
from perceptune.data.recognition.joining import joined
from perceptune.data.recognition.kinds import Learned, Summary, as_they_are, find_kind, probe
from perceptune.data.recognition.recognize import recognize
from perceptune.data.tasks.base import GivenFiles
from perceptune.errors import UserError

_TASK = "task."
_CONVERSATIONS = ("llava", "messages")


@dataclass(frozen=True)
class Recognized:
    """A data set: its form, its samples in numbers, and what is learned from it."""

    place: str
    form: Form
    found: Summary
    learned: Learned
    task: dict[str, Any]  # keys of the recipe's `task`
    doubt: UserError | None = None  # why it is open what is to be learned

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the splits beside the training data."""
        return tuple(split for split in (VALIDATION, "test") if self.task.get(split) or split in self.form.splits)

    @property
    def line(self) -> str:
        """Return what the data was taken for, each part with the flag or key that changes it."""
        mixed = f"{len(self.found.media):,} media ({', '.join(self.found.modalities)})"
        media = mixed if len(self.found.modalities) > 1 else _counted(len(self.found.distinct), self.found.modality)
        classes = self.task.get("choices") or self.found.targets
        kind = f"{len(classes):,} classes" if self.learned.kind == "classes" else self.learned.kind
        parts = [f"{self.form.what} (--task {self.form.reader}): {_counted(self.found.samples, 'sample')} with {media}"]
        parts[0] += "" if self.doubt else f", {kind}"
        parts += [f"up to {_counted(most, modality)} a sample (encoders.{modality}.max_media)"
                  for modality, most in self.found.most.items() if most > 1]  # fmt: skip
        parts += self.form.guesses
        if (folder := self.task.get("media")) is not None:
            listed = dict.fromkeys(folder.values() if isinstance(folder, dict) else [folder])
            parts.append(f"media in {', '.join(listed)} (--media)")
        if (prompt := self.task.get("prompt")) is not None:
            parts.append(f"question `{prompt}` (task.prompt)")
        if self.found.with_history:
            parts.append("earlier turns in the LM's chat template (text.template)")
        if self.doubt is None:
            parts.append(f"metric {self.task.get('metric', _metric_of(self.form))} (task.metric)")
        return f"{self.place}: {'; '.join(parts)}"


def recognize_task(
    place: str, *, split: str = "train", media: str | None = None, reader: str | None = None,
    words: Sequence[str] = (), validation: str | None = None, settings: Mapping[str, Any] | None = None,
) -> Recognized:  # fmt: skip
    """Recognise the data at `place` and what is learned from it; options as in `find_reader`.

    `validation` is more data of the same form. Raises `UserError` for data of no known form, or of several; what is
    to be learned is left open then (`Recognized.doubt`).
    """
    form, given = find_reader(place, split=split, media=media, reader=reader, words=words, settings=settings)
    if validation is not None:
        known = {**({} if media is None else {"media": media}), **_texts(words)}
        form = _with_validation(form, validation, reader, known)
    found, doubt = probe(form, given, split), None
    try:
        learned = find_kind(form, found, given)
        if found.with_history:
            learned = replace(learned, template="chat")
    except UserError as error:
        # Where some rows have questions, those without one are mistakes, which the reader names.
        how = {} if found.with_prompt else as_they_are(form.reader)
        learned, doubt = Learned("questions", how, None), error
    own = {key: value for key, value in learned.task.items() if key in _fields(form.reader)}
    task = {"name": form.reader, **own, **form.options, **given}
    return Recognized(place, form, found, learned, task, doubt)


def find_reader(
    place: str, *, split: str = "train", media: str | None = None, reader: str | None = None,
    words: Sequence[str] = (), settings: Mapping[str, Any] | None = None,
) -> tuple[Form, dict[str, Any]]:  # fmt: skip
    """Return the form of the data at `place` read as `split`, and the options that were given for its reader.

    `media` is the folder of its media, `reader` a task that was named, `words` overrides KEY=VALUE, of which those of
    `task` count, `settings` options of another task for any reader that has them.
    """
    texts = _texts(words)
    media = texts.get("media", media)
    if reader:
        form = _named(reader, place, split, media, texts)
    else:
        form = recognize(place, split=split, media=media, given=texts)
    kept = {key: value for key, value in (settings or {}).items() if key in _fields(form.reader)}
    folder = {} if media is None or "media" in form.options else {"media": media}
    if folder and "media" not in _fields(form.reader):
        raise UserError(f"--media {media}: {form.what} (--task {form.reader}) hold their media themselves")
    return form, {**kept, **folder, **task_options(words, form.reader)}


def _with_validation(form: Form, place: str, reader: str | None, given: Mapping[str, str]) -> Form:
    """Return a form with further data as its split `validation`, whose media may lie in another folder.

    `given` are options of the reader, and `reader` the task if it was named.
    """
    is_published = "annotations" in form.options
    keys = {} if is_published else validation_keys(form.reader, place)
    other: Form | None = None
    try:
        other = recognize(place, split=VALIDATION, media=given.get("media"), given=given)
    except UserError:  # the reader names what is wrong with its data
        if is_published:
            raise
    if other is not None and {form.reader, other.reader} == {*_CONVERSATIONS}:  # each reads what the other one does
        other = replace(other, reader=form.reader)
    if other is None or (other.reader != form.reader and reader is not None):
        return replace(form, options={**form.options, **keys}, splits=("train", VALIDATION))
    if other.reader != form.reader:
        raise UserError(
            f"--validation {place}: {other.what} ({other.reader}), but --data is {form.what} ({form.reader})"
        )
    if "path" in form.options:
        raise UserError(
            f"--validation {place}: `--task {form.reader}` reads one data set: put its files into one folder, as "
            "train.parquet and validation.parquet, or name its split"
        )
    return joined({"train": form, VALIDATION: other})


def _fields(reader: str) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = leaf("tasks", reader).module.TASK.Options.model_fields
    return fields


def _texts(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a task among overrides, as their text: the reader that has them is not yet known."""
    pairs = (word.removeprefix(_TASK).partition("=") for word in words if word.startswith(_TASK))
    return {key: value for key, _, value in pairs}


def task_options(words: Sequence[str], reader: str) -> dict[str, Any]:
    """Return the options of a task among overrides, converted to the types of the reader's keys."""
    data: dict[str, Any] = {"task": {"name": reader}}
    for word in words:
        if word.startswith(_TASK):
            put(data, word)
    task: dict[str, Any] = typed(data, Recipe)["task"]
    return {key: value for key, value in task.items() if key != "name"}


def _named(reader: str, place: str, split: str, media: str | None, texts: Mapping[str, str]) -> Form:
    """Return the form of a reader that was named, with its columns if they can be found."""
    try:
        form = recognize(place, split=split, media=media, given=texts)
        if form.reader == reader:
            return form
    except UserError:  # the reader names what is wrong with its data
        pass
    return Form(f"task {reader}", reader, data_keys(reader, place, split), splits=(split,))


def _metric_of(form: Form) -> str:
    kind = leaf("tasks", form.reader).module.TASK
    return "accuracy" if issubclass(kind, GivenFiles) else str(getattr(kind, "metric", "accuracy"))


def _counted(count: int, what: str) -> str:
    words = {"audio": ("audio file", "audio files")}.get(what, (what, f"{what}s"))
    return f"{count:,} {words[count != 1]}"
