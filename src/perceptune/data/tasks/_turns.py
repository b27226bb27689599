"""Conversations as rows: one for each answer, with the previous turns."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, json_type
from perceptune.data.tasks._lazy_rows import Converted
from perceptune.data.tasks._streams import json_objects
from perceptune.errors import nearest

_TAG = re.compile(rf"<({'|'.join(MODALITIES)})>[ \t]*\n?")


class Turn(NamedTuple):
    """One turn of a conversation."""

    answers: bool  # whether it is the model's turn
    text: str


class Talk(NamedTuple):
    """The conversation of a row."""

    media: Mapping[str, str]  # modality -> file
    turns: Sequence[Turn]
    meta: Mapping[str, Any]


class Conversations(Converted):
    """Conversations with one sample per answer. Its prompt is the question after all previous turns, one per line.

    A medium belongs to the turn with its tag (`<image>`) and all later ones; without a tag, to all turns.
    """

    class Options(Converted.Options):
        """Options of rows, and the answers of a conversation that are trained on."""

        turns: Literal["each", "first", "last"] = Field("each", description="which answers become samples")
        history: bool = Field(True, description="put earlier turns before the question")
        parse_lists: bool = Field(False, description="read an answer that is a list written as text as several targets")

    strict_tags = True  # whether every medium must have its tag

    @abstractmethod
    def talk(self, record: Record) -> Talk:
        """Parse the conversation of a row. Raises `UserError` naming the mistake."""

    def rows(self, path: Path, split: str) -> Iterator[Record]:
        for record in json_objects(path):
            talk = self.talk(record)
            tags = _tags(talk)
            self._check_tags(record, talk, tags)
            rows = list(self._answers(record, talk, bool(tags)))
            if not rows:
                raise record.error("no question with an answer in the conversation")
            chosen = {"each": slice(None), "first": slice(1), "last": slice(-1, None)}[self._options.turns]
            yield from (record._replace(values=row) for row in rows[chosen])

    def _answers(self, record: Record, talk: Talk, tagged: bool) -> Iterator[dict[str, Any]]:
        """Yield the rows of all answers; the first has the id of the conversation."""
        name, said, asked, number = record.values.get("id"), list[str](), False, 0
        seen: set[str] = set() if tagged else set(talk.media)
        for turn in talk.turns:
            seen |= talk.media.keys() & set(_TAG.findall(turn.text))
            text = _TAG.sub(lambda tag: "" if tag[1] in talk.media else tag[0], turn.text).strip()
            if turn.answers and asked:
                number += 1
                media: dict[str, str | None] = {key: file for key, file in talk.media.items() if key in seen}
                prompt = "\n".join(said if self._options.history else said[-1:])
                row = {"id": name, **(media or {"image": None}), "prompt": prompt, "targets": text, **talk.meta}
                if number > 1:
                    row |= {"id": None if name is None else f"{name}/{number}", "turn": number}
                yield row
            asked = not turn.answers
            said.append(text)

    def _check_tags(self, record: Record, talk: Talk, tags: Sequence[str]) -> None:
        """Raise `UserError` if tags and media do not match."""
        for modality in MODALITIES:
            count, given = tags.count(modality), int(modality in talk.media)
            if count != given and (count or self.strict_tags):
                raise record.error(f"{count} `<{modality}>` in the conversation, but {given} {modality} given")


def _tags(talk: Talk) -> list[str]:
    """Return all tags. Without such media, `<video>` and `<audio>` are text, as in conversations about web pages."""
    relevant = {"image", *talk.media}
    return [tag for turn in talk.turns for tag in _TAG.findall(turn.text) if tag in relevant]


def turns_of(
    record: Record, key: str, speaker: str, content: str, sides: Mapping[str, bool], text_of: Callable[[object], str]
) -> list[Turn]:
    """Return the turns of the list at `key`. `sides`: speaker -> whether it is the model; `text_of` reads `content`."""
    if record.values.get(key) is None:
        raise record.lacks([key])
    turns = record.values[key]
    if not isinstance(turns, list):
        raise record.error(f"`{key}` is {json_type(turns)}, not a list")
    found = []
    for index, turn in enumerate(turns):
        where = f"{key}[{index}]"
        if not isinstance(turn, dict):
            raise record.error(f"`{where}` is {json_type(turn)}, not an object")
        part = Record(f"{record.where}: `{where}`", turn, (speaker, content))
        for wanted in (speaker, content):
            if wanted not in turn:
                raise part.lacks([wanted])
        name = part.text(speaker)
        if name not in sides:
            raise part.error(f"unknown `{speaker}` `{name}`{nearest(name, sides)}")
        found.append(Turn(sides[name], text_of(turn[content])))
    return found
