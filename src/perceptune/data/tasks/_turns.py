"""Conversations as rows: one for each answer, with the previous turns, or one for all answers together."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from perceptune.data.lazy_rows import LazyRow
from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record
from perceptune.data.tasks._chat_rows import Turn, chat_of, media_beside
from perceptune.data.tasks._columns import KEYS
from perceptune.data.tasks._lazy_rows import Converted
from perceptune.data.tasks._marks import Placed
from perceptune.data.tasks._streams import json_objects
from perceptune.data.tasks._tags import TAG, check_tags, same_name, unify_tags
from perceptune.data.tasks._talks import (
    HISTORY,
    MARKS,
    answer_rows,
    history_in,
    marks_in,
    merge_beside,
    place_in_turns,
    whole_row,
)
from perceptune.errors import UserError, nearest
from perceptune.types import Media

_NOTED = "perceptune:noted"  # key of a converted row with the notes of its conversation
# What is said of conversations, with their number: of one and of several.
_NOTES = {
    "begins": ("1 conversation begins with the model, whose", "{:,} conversations begin with the model, whose",
               " first turn is left out"),
    "rejected": ("1 conversation has", "{:,} conversations have", " rejected answers, which are not read"),
    "named": ("1 conversation names", "{:,} conversations name",
              " another file in its text than beside it, which is the one read"),
}  # fmt: skip


class Conversations(Converted):
    """Conversations with one sample per answer. Its prompt is the question after all previous turns, one per line.

    A medium belongs to the first turn with its tag (`<image>`) and all later ones; without a tag, to all turns.
    With `turns: all` a conversation is one sample with `history`, whose answers are all trained on.
    """

    class Options(Converted.Options):
        """Options of rows, and the answers of a conversation that are trained on."""

        turns: Literal["each", "first", "last", "all"] = Field(
            "each",
            description="which answers become samples; `all` = one sample for each conversation, trained on every "
            "answer, which needs `text.template: chat`",
        )
        history: bool = Field(True, description="put earlier turns before the question")
        parse_lists: bool = Field(False, description="read an answer that is a list written as text as several targets")
        image_key: str | None = Field(None, description="key of the image's file; None = `image` or `images`")
        audio_key: str | None = Field(None, description="key of the audio file; None = `audio` or `audios`")
        video_key: str | None = Field(None, description="key of the video's file; None = `video` or `videos`")

        @model_validator(mode="after")
        def _has_one_history(self) -> Self:
            if self.turns == "all" and not self.history:
                raise ValueError("`history: false` leaves earlier turns out, and `turns: all` trains on all of them")
            return self

    turns_key: ClassVar[str]  # key of the turns, which goes before the other keys of turns

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._chosen = {m: key for m in MODALITIES if (key := getattr(options, f"{m}_key")) is not None}
        self._media_keys = {m: (self._chosen[m],) if m in self._chosen else (m, f"{m}s") for m in MODALITIES}
        self._counts: dict[str, Counter[str]] = {}
        self._counted: dict[str, int] = {}  # last line whose notes were counted

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        unseen, record = dict(self._chosen), None
        for record in json_objects(path):
            unseen = {modality: key for modality, key in unseen.items() if key not in record.values}
            rows, notes = self._rows_of(record)
            if not rows:
                raise record.error("no question with an answer in the conversation")
            rows = rows[{"first": slice(1), "last": slice(-1, None)}.get(self._options.turns, slice(None))]
            if notes:
                rows[0][_NOTED] = notes
            yield from (record._replace(values=row) for row in rows)
        if record and unseen:
            modality, key = next(iter(unseen.items()))
            near = nearest(key, record.values)
            raise UserError(f"{path}: no row has the key `{key}` of `{modality}_key`{near}")

    def notes(self, split: str) -> list[str]:
        counts = self._counts.get(split, Counter())
        return [f"{(one if counts[kind] == 1 else many).format(counts[kind])}{rest}"
                for kind, (one, many, rest) in _NOTES.items() if counts[kind]]  # fmt: skip

    def _record(self, row: LazyRow, split: str) -> Record | None:
        record = super()._record(row, split)
        if record is not None:
            record = record._replace(keys=(*record.keys, MARKS, HISTORY))
            noted = record.values.pop(_NOTED, ())
            if row.line > self._counted.get(split, 0):  # rows are first read in order, later in any
                self._counted[split] = row.line
                self._counts.setdefault(split, Counter()).update(noted)
        return record

    def _placed(self, record: Record, prompt: str, media: Mapping[str, Media]) -> Placed:
        return Placed(prompt, marks_in(record.values), history=history_in(record.values))

    def _rows_of(self, record: Record) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the rows of a conversation, and the keys of its `_NOTES`. Raises `UserError` naming the mistake."""
        chat = chat_of(record, self.turns_key)
        turns, notes = _begin(record, chat.turns)
        beside = list(media_beside(record, self._media_keys))
        if "rejected" in chat.keys and record.values.get("rejected") is not None:
            notes.append("rejected")
        known = {*KEYS, *chat.keys, *(key for keys in self._media_keys.values() for key in keys)}
        meta = {key: value for key, value in record.values.items() if key not in known}
        rows = None
        if self._options.turns != "all":
            rows = _rows_of_one_each(record, turns, beside, notes, history=self._options.history)
        if rows is None:
            talk = place_in_turns(record, turns, merge_beside(record, beside))
            if self._options.turns == "all":
                rows = [row] if (row := whole_row(record, talk)) else []
            else:
                rows = [*answer_rows(talk, history=self._options.history)]
        return [_named(meta, record.values.get("id"), number, row) for number, row in enumerate(rows, 1)], notes


def _named(meta: Mapping[str, Any], name: Any, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an answer with its id; the first has that of the conversation."""
    if number > 1:
        return {**meta, "id": None if name is None else f"{name}/{number}", **row, "turn": number}
    return {**meta, "id": name, **row}


def _rows_of_one_each(
    record: Record, turns: Sequence[Turn], beside: Sequence[tuple[str, list[str]]], notes: list[str], *, history: bool
) -> list[dict[str, Any]] | None:
    """Return the rows of all answers of a conversation with one medium of each modality; None if it has several.

    A note on names in the text is appended to `notes`.
    """
    media = _one_each([*beside, *(item for turn in turns for item in turn.media.items())])
    if media is None:
        return None
    turns = [_tagged(turn) for turn in turns]
    places = [index for index, turn in enumerate(turns) if turn.role != "model"]  # in answers tags are text
    tagged = unify_tags(record, [turns[index].text for index in places], media)
    named = _one_each([(name.modality, [name.file]) for name in tagged.named if name.modality not in media])
    if named is None:
        return None
    for index, text in zip(places, tagged.texts, strict=True):
        turns[index] = turns[index]._replace(text=text)
    check_tags(record, tagged.texts, media | named)
    if any(name.modality in media and not same_name(name.file, media[name.modality]) for name in tagged.named):
        notes.append("named")
    return list(_answers(media | named, turns, history=history))


def _tagged(turn: Turn) -> Turn:
    """Return a turn with tags for the media that it names."""
    text = turn.text
    for modality in turn.media:
        text = text if f"<{modality}>" in text else f"<{modality}>{text}"
    return turn._replace(text=text)


def _answers(given: Mapping[str, str], turns: Sequence[Turn], *, history: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of all answers; a medium belongs to the first turn with its tag and all later ones."""
    said, asked = list[str](), False
    tags = {tag for turn in turns if turn.role != "model" for tag in TAG.findall(turn.text)}
    seen = set(given) - tags
    for turn in turns:
        text = turn.text.strip()
        if turn.role != "model":
            seen |= given.keys() & set(TAG.findall(text))
            text = TAG.sub(lambda tag: "" if tag[1] in given else tag[0], turn.text).strip()
        elif asked and turn.is_trained:
            media: dict[str, str | None] = {key: file for key, file in given.items() if key in seen}
            prompt = "\n".join(said if history else said[-1:])
            yield {**(media or {"image": None}), "prompt": prompt, "targets": text}
        asked = turn.role != "model"
        said.append(text)


def _begin(record: Record, turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """Leave out what the model says before the first question. Raises `RowError` if there are only its turns."""
    if turns and all(turn.role == "model" for turn in turns):
        advice = "a caption is read by `jsonl`, as `caption` beside `image`, with `metric: CIDEr`"
        raise record.error(f"only the model speaks in the conversation; {advice}")
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), 0)
    before = [turn for turn in turns[:first] if turn.role != "model"]
    return [*before, *turns[first:]], ["begins"] if len(before) < first else []


def _one_each(given: Sequence[tuple[str, list[str]]]) -> dict[str, str] | None:
    """Return the file of each modality, which several keys and turns may name; None for several files."""
    media: dict[str, str] = {}
    for modality, names in given:
        if len(names) > 1 or media.setdefault(modality, names[0]) != names[0]:
            return None
    return media
