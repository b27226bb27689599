"""Conversations in LLaVA's form: a JSON list, or one object a line.

    {"id": "7", "image": "a/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                      {"from": "gpt", "value": "A cat."}]}

`image`, `video` or `audio` is a file relative to `media`; a row without one is text alone. Every answer becomes a
sample: its prompt is the question after all earlier turns, a line each (`turns: first`, `last`; `history: false`).
"""

from functools import partial

from perceptune.data.records import Record
from perceptune.data.tasks.base import MODALITIES, Conversations, Talk, turns_of

_SIDES = {"human": False, "user": False, "system": False, "gpt": True, "assistant": True, "model": True}


class Llava(Conversations):
    """Conversations in LLaVA's form; splits are the given files."""

    def talk(self, record: Record) -> Talk:
        text_of = partial(record.check_text, "conversations")
        turns = turns_of(record, "conversations", "from", "value", _SIDES, text_of)
        media = {key: record.text(key) for key in MODALITIES if record.values.get(key) is not None}
        known = ("id", "conversations", *MODALITIES)
        return Talk(media, turns, {key: value for key, value in record.values.items() if key not in known})


TASK = Llava
