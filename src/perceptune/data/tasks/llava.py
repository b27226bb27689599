"""Conversations in LLaVA's form: a JSON list, or one object a line.

    {"id": "7", "image": "a/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                      {"from": "gpt", "value": "A cat."}]}

`image`, `video` or `audio` is a file relative to `media`, or a list; a row without one is text alone. Every answer
becomes a sample: its prompt is the question after all earlier turns, a line each (`turns: first`, `last`;
`history: false`). With `turns: all` a conversation is one sample. All forms of task `messages` are read, too.
"""

from perceptune.data.tasks.base import Conversations


class Llava(Conversations):
    """Conversations in LLaVA's form; splits are the given files."""

    turns_key = "conversations"


TASK = Llava
