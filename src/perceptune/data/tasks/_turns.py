"""Conversations as rows: one for each answer, with the previous turns."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from perceptune.data.lazy_rows import LazyRow
from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, short
from perceptune.data.tasks._chat_rows import Turn, chat_of, media_beside
from perceptune.data.tasks._columns import KEYS
from perceptune.data.tasks._lazy_rows import Converted
from perceptune.data.tasks._streams import json_objects
from perceptune.data.tasks._tags import TAG, check_tags, same_name, unify_tags
from perceptune.errors import UserError, nearest

_NOTED = "perceptune:noted"  # key of a converted row with the notes of its conversation
# What is said of conversations, with their number: of one and of several.
_NOTES = {
    "begins": ("1 conversation begins with the model, whose", "{:,} conversations begin with the model, whose",
               " first turn is left out"),
    "rejected": ("1 conversation has", "{:,} conversations have", " rejected answers, which are not read"),
    "named": ("1 conversation names", "{:,} conversations name",
              " another file in its text than beside it, which is the one read"),
}  # fmt: skip


class Talk(NamedTuple):
    """The conversation of a row."""

    media: Mapping[str, str]  # modality -> file
    turns: Sequence[Turn]
    meta: dict[str, Any]
    notes: Sequence[str]  # keys of `_NOTES`


class Conversations(Converted):
    """Conversations with one sample per answer. Its prompt is the question after all previous turns, one per line.

    A medium belongs to the first turn with its tag (`<image>`) and all later ones; without a tag, to all turns.
    """

    class Options(Converted.Options):
        """Options of rows, and the answers of a conversation that are trained on."""

        turns: Literal["each", "first", "last"] = Field("each", description="which answers become samples")
        history: bool = Field(True, description="put earlier turns before the question")
        parse_lists: bool = Field(False, description="read an answer that is a list written as text as several targets")
        image_key: str | None = Field(None, description="key of the image's file; None = `image` or `images`")
        audio_key: str | None = Field(None, description="key of the audio file; None = `audio` or `audios`")
        video_key: str | None = Field(None, description="key of the video's file; None = `video` or `videos`")

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
            talk = self._talk(record)
            rows = list(self._answers(record, talk))
            if not rows:
                raise record.error("no question with an answer in the conversation")
            rows = rows[{"each": slice(None), "first": slice(1), "last": slice(-1, None)}[self._options.turns]]
            if talk.notes:
                rows[0][_NOTED] = talk.notes
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
            noted = record.values.pop(_NOTED, ())
            if row.line > self._counted.get(split, 0):  # rows are first read in order, later in any
                self._counted[split] = row.line
                self._counts.setdefault(split, Counter()).update(noted)
        return record

    def _talk(self, record: Record) -> Talk:
        """Parse the conversation of a row. Raises `UserError` naming the mistake."""
        chat = chat_of(record, self.turns_key)
        turns, notes = _begin(record, chat.turns)
        media = _one_each(record, [*media_beside(record, self._media_keys), *chat.media])
        places = [index for index, turn in enumerate(turns) if turn.role != "model"]  # in answers tags are text
        tagged = unify_tags(record, [turns[index].text for index in places], media)
        for index, text in zip(places, tagged.texts, strict=True):
            turns[index] = turns[index]._replace(text=text)
        named = _one_each(record, [(modality, [name]) for modality, name in tagged.named if modality not in media])
        check_tags(record, tagged.texts, media | named)
        if any(modality in media and not same_name(name, media[modality]) for modality, name in tagged.named):
            notes.append("named")
        if "rejected" in chat.keys and record.values.get("rejected") is not None:
            notes.append("rejected")
        known = {*KEYS, *chat.keys, *(key for keys in self._media_keys.values() for key in keys)}
        meta = {key: value for key, value in record.values.items() if key not in known}
        return Talk(media | named, turns, meta, notes)

    def _answers(self, record: Record, talk: Talk) -> Iterator[dict[str, Any]]:
        """Yield the rows of all answers; the first has the id of the conversation."""
        name, said, asked, number = record.values.get("id"), list[str](), False, 0
        tags = {tag for turn in talk.turns if turn.role != "model" for tag in TAG.findall(turn.text)}
        seen = set(talk.media) - tags
        for turn in talk.turns:
            text = turn.text.strip()
            if turn.role != "model":
                seen |= talk.media.keys() & set(TAG.findall(text))
                text = TAG.sub(lambda tag: "" if tag[1] in talk.media else tag[0], turn.text).strip()
            elif asked and turn.is_trained:
                number += 1
                media: dict[str, str | None] = {key: file for key, file in talk.media.items() if key in seen}
                prompt = "\n".join(said if self._options.history else said[-1:])
                row = talk.meta | {"id": name, **(media or {"image": None}), "prompt": prompt, "targets": text}
                if number > 1:
                    row |= {"id": None if name is None else f"{name}/{number}", "turn": number}
                yield row
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


def _one_each(record: Record, given: Sequence[tuple[str, list[str]]]) -> dict[str, str]:
    """Return the file of each modality, which several keys and turns may name. Raises `RowError` for several files."""
    media: dict[str, str] = {}
    for modality, names in given:
        if len(names) > 1 or media.setdefault(modality, names[0]) != names[0]:
            shown = ", ".join(short(name, 60) for name in dict.fromkeys([media.get(modality, names[0]), *names][:3]))
            said = f"more than one {modality} in the conversation ({shown})"
            raise record.error(f"{said}; a run reads one medium of each modality")
    return media
