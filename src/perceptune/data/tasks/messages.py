"""Chat messages with media beside them: a JSON list, or one object a line.

    {"messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["a/7.jpg"]}

`images`, `videos` and `audios` hold files, relative to `media`; `content` is a text or a list of parts such as
`{"type": "text", "text": "..."}` and `{"type": "image", "image": "a/7.jpg"}`. Tags such as `<image>` may be there or
not; they say which turn a medium belongs to, and its place. Every answer becomes a sample: its prompt is the question
after all earlier turns, a line each (`turns: first`, `last`; `history: false`). With `turns: all` a conversation is one
sample, which is trained on all of its answers. All forms of task `llava` are read, too, and rows of one question:
`query` and `response`, `instruction` and `output`, `prompt` and `completion`.
"""

from perceptune.data.tasks.base import Conversations


class Messages(Conversations):
    """Chat messages; splits are the given files."""

    turns_key = "messages"


TASK = Messages
