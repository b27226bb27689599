"""Chat messages with media beside them: a JSON list, or one object a line.

    {"messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["a/7.jpg"]}

`images`, `videos` and `audios` hold one file at most, relative to `media`; `content` is a text or a list of parts such
as `{"type": "text", "text": "..."}` and `{"type": "image", "image": "a/7.jpg"}`. Tags such as `<image>` may be there or
not. Every answer becomes a sample: its prompt is the question after all earlier turns, a line each (`turns: first`,
`last`; `history: false`).
"""

from functools import partial
from typing import Any

from perceptune.data.records import Record, json_type, short
from perceptune.data.tasks.base import MODALITIES, Conversations, Talk, turns_of
from perceptune.errors import nearest

_SIDES = {"user": False, "system": False, "assistant": True}


class Messages(Conversations):
    """Chat messages; splits are the given files."""

    strict_tags = False

    def talk(self, record: Record) -> Talk:
        beside = [(modality, file) for modality in MODALITIES for file in _files(record, f"{modality}s")]
        inside: list[tuple[str, str]] = []
        text_of = partial(_text, record, files=inside)
        turns = turns_of(record, "messages", "role", "content", _SIDES, text_of)
        media: dict[str, str] = {}
        for modality, file in (*beside, *inside):
            if modality in media:
                raise record.error(f"more than one {modality}; a sample has one of each modality")
            media[modality] = file
        known = ("id", "messages", *(f"{modality}s" for modality in MODALITIES))
        return Talk(media, turns, {key: value for key, value in record.values.items() if key not in known})


TASK = Messages


def _files(record: Record, key: str) -> list[str]:
    """Return the files at `images` and so on: a list of names or of `{"path": name}`."""
    value = record.values.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise record.error(f"`{key}` is {json_type(value)}, not a list")
    return [
        record.check_text(f"{key}[{index}]", file.get("path") if isinstance(file, dict) else file)
        for index, file in enumerate(value)
    ]


def _text(record: Record, content: object, files: list[tuple[str, str]]) -> str:
    """Return the text of a message; media among its parts are appended to `files` and replaced by tags."""
    if not isinstance(content, list):
        return record.check_text("content", content)
    texts = []
    for index, part in enumerate(content):
        where = f"content[{index}]"
        if not isinstance(part, dict):
            raise record.error(f"`{where}` is {json_type(part)}, not an object")
        kind = str(part.get("type")).removesuffix("_url")
        if kind == "text":
            texts.append(record.check_text(f"{where}.text", part.get("text")))
        elif kind in MODALITIES:
            texts.append(f"<{kind}>")
            if (file := _file_of(part, kind)) is not None:
                files.append((kind, record.check_text(f"{where}.{kind}", file)))
        else:
            raise record.error(f"`{where}`: unknown type `{short(kind)}`{nearest(kind, ('text', *MODALITIES))}")
    return "".join(texts)


def _file_of(part: dict[str, Any], kind: str) -> object:
    """Return the file that a part names; None if it is listed beside the messages."""
    value = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key) is not None), None)
    return value.get("url", value.get("path")) if isinstance(value, dict) else value
