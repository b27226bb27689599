"""Messages of a request as one sample: turns, places of media, and what is refused in which words."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from perceptune.models.text_rows import messages_of
from perceptune.serving.conversation import Conversation, read_conversation, require_answerable
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import Limits
from perceptune.serving.request_parser import RequestParser
from perceptune.serving.schema import parsed
from perceptune.types import Mark, Message, Sample
from servers import text_part, turn

IMAGE = {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA"}}


def read(*messages: dict[str, Any]) -> Conversation:
    return read_conversation(parsed(json.dumps({"model": "x", "messages": messages}).encode()).messages)


def refusal(*messages: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*messages)
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value


def served(*, chat: bool = True, system: bool = True, media: int = 3) -> Any:
    return SimpleNamespace(
        name="one", takes_history=chat, max_media={"image": media},
        refusal_of=lambda roles: None if system or "system" not in roles else "the LM's chat template leaves it out",
        model=SimpleNamespace(required_modalities=frozenset()),
    )  # fmt: skip


def test_a_single_question_is_the_sample_that_it_was() -> None:
    asked = read(turn("user", text_part("color?"), IMAGE))
    assert asked.sample([b"a"]) == Sample("question", {"image": b"a"}, "color?", marks=(Mark(6, "image"),))
    assert [one.name for one in asked.attached] == ["the image"]
    assert read(turn("user", "a")).sample([]) == Sample("question", {}, "a")


@pytest.mark.parametrize(
    ("parts", "text", "places"),
    [
        ([IMAGE, "a"], "a", [0]), (["a", IMAGE], "a", [1]), (["a", IMAGE, "b"], "a\nb", [2]), ([IMAGE], "", [0]),
        ([IMAGE, "a", IMAGE, "bc", IMAGE], "a\nbc", [0, 2, 4]), (["a", "b", IMAGE, IMAGE], "a\nb", [3, 3]),
        (["", IMAGE, "b"], "\nb", [1]),
    ],
)  # fmt: skip
def test_a_medium_stands_before_the_text_that_follows_it(parts: list[Any], text: str, places: list[int]) -> None:
    asked = read(turn("user", *[text_part(part) if isinstance(part, str) else part for part in parts]))
    assert (asked.prompt, [mark.at for mark in asked.marks]) == (text, places)


def test_turns_are_history_and_media_keep_their_order() -> None:
    asked = read(
        turn("system", "be kind"), turn("developer", "and short"), turn("user", IMAGE, text_part("one?"), SOUND),
        turn("assistant", "a dog"), turn("user", "more?"), turn("assistant", ""),
        turn("user", text_part("both?"), IMAGE, IMAGE),
    )  # fmt: skip
    sample = asked.sample([b"1", b"sound", b"2", b"3"])
    assert sample.history == (
        Message("system", "be kind\n\nand short"),
        Message("user", "one?", (Mark(0, "image"), Mark(4, "audio"))), Message("assistant", "a dog"),
        Message("user", "more?"), Message("assistant", ""),
    )  # fmt: skip
    assert (sample.prompt, sample.marks) == ("both?", (Mark(5, "image"), Mark(5, "image")))
    assert sample.media == {"image": (b"1", b"2", b"3"), "audio": b"sound"}
    assert [one.name for one in asked.attached] == [
        "image 1 of message 3", "the audio", "image 1 of message 7", "image 2 of message 7"
    ]  # fmt: skip
    assert asked.n_characters == len("be kind\n\nand shortone?a dogmore?both?")


@pytest.mark.parametrize("content", ["", " \n", None, [], [{"type": "text", "text": ""}]])
def test_an_empty_system_message_counts_as_none(content: Any) -> None:
    empty = {"role": "system", "content": content}
    assert read(empty, turn("user", "a"), {**empty, "role": "developer"}).history == ()


@pytest.mark.parametrize(
    ("messages", "param", "said"),
    [
        ([turn("assistant", "a"), turn("user", "b")], "messages.0", "begins with the user"),
        ([turn("system", "a"), turn("assistant", "a"), turn("user", "b")], "messages.1", "begins with the user"),
        ([turn("user", "a"), turn("user", "b")], "messages.1", "two messages of role `user` in a row"),
        ([turn("user", "a"), turn("system", ""), turn("user", "b")], "messages.2", "role `user` in a row"),
        ([turn("user", "a"), turn("assistant", "b"), turn("assistant", "c"), turn("user", "d")], "messages.2",
         "two messages of role `assistant` in a row"),
        ([turn("user", "a"), turn("assistant", "b")], "messages.1", "ends with a message of the user"),
        ([turn("user", "a"), turn("system", "b"), turn("assistant", "c"), turn("user", "d")], "messages.1",
         "before the first message of the user"),
        ([turn("user", "a"), turn("assistant", "c"), turn("tool", "d"), turn("user", "d")], "messages.2", "no tools"),
        ([turn("system", "a")], "messages.0", "ends with a message of the user"),
        ([turn("user", "a"), turn("assistant", IMAGE), turn("user", "b")], "messages.1", "media belong to"),
        ([turn("system", text_part("a"), IMAGE), turn("user", "b")], "messages.0", "media belong to"),
        ([turn("system", IMAGE), turn("user", "b")], "messages.0", "media belong to"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(messages: list[dict[str, Any]], param: str, said: str) -> None:
    error = refusal(*messages)
    assert (error.param, error.code) == (param, "unsupported_conversation")
    assert said in error.message


def test_only_empty_system_messages_leave_nothing_to_answer() -> None:
    with pytest.raises(ApiError, match="ends with a message of the user"):
        read(turn("system", ""))


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_without_content_is_named(role: str) -> None:
    place = 0 if role == "user" else 1
    messages = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    messages[place] = {"role": role, "content": None}
    error = refusal(*messages)
    assert (error.param, "is missing" in error.message) == (f"messages.{place}.content", True)


HISTORY = (turn("user", "a"), turn("assistant", "b"), turn("user", "c"))


@pytest.mark.parametrize(
    ("messages", "run", "said"),
    [
        (HISTORY, served(chat=False), "answers single questions.*no place for earlier turns.*`text.template: chat`"),
        ((turn("system", "a"), turn("user", "b")), served(chat=False), "single questions.*a system message"),
        ((turn("system", "a"), *HISTORY), served(chat=False), "no place for a system message and earlier turns"),
        ((turn("system", "a"), turn("user", "b")), served(system=False), "chat template leaves it out"),
        ((turn("user", IMAGE, IMAGE), *HISTORY[1:]), served(media=1), r"^more than one image: 2 .*\.max_media"),
        ((turn("user", IMAGE), HISTORY[1], turn("user", *[IMAGE] * 3)), served(), "^more than 3 images: 4 .* takes 3"),
        ((turn("user", SOUND),), served(), "takes no audio"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_express_is_refused(messages: Any, run: Any, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        require_answerable(read(*messages), run)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert caught.value.code == ("no_encoder" if "audio" in said else "unsupported_conversation")


def test_what_a_run_can_express_passes() -> None:
    require_answerable(read(turn("system", "a"), turn("user", IMAGE), HISTORY[1], turn("user", IMAGE, IMAGE)), served())
    require_answerable(read(turn("system", ""), turn("user", IMAGE)), served(chat=False, media=1))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(text_chars=5), "more than 5 characters"), (Limits(messages=2), "more than 2 messages"),
        (Limits(media=2), "more than 2 media"), (Limits(parts=1), "more than 1 parts in a message"),
    ],
)  # fmt: skip
def test_limits_are_those_of_all_messages_together(limits: Limits, said: str) -> None:
    nothing: Any = None
    body = {
        "model": "x",
        "messages": [turn("user", IMAGE, IMAGE), turn("assistant", "abc"), turn("user", "def", IMAGE)],
    }
    with pytest.raises(ApiError, match=said) as caught:
        RequestParser(limits, nothing, None, None, 1)._within_limits(parsed(json.dumps(body).encode()))
    assert caught.value.param == "messages"


def test_marks_and_media_of_every_conversation_match() -> None:
    """As the text format takes them: with a mark for each medium, and the media in the order of the marks."""
    chance = random.Random(0)
    for _ in range(200):
        turns = [turn("system", "a")] if chance.random() < 0.3 else []
        shown = []
        for number in range(chance.choice([1, 3, 5])):
            parts = [chance.choice(["ab", "", IMAGE, SOUND]) for _ in range(chance.randint(1, 4))]
            turns.append(turn("assistant", "b") if number % 2 else turn("user", "c", *parts))
            shown += [] if number % 2 else [part for part in parts if not isinstance(part, str)]
        asked = read(*turns)
        sample = asked.sample([bytes([number]) for number in range(len(shown))])
        said = messages_of(sample)
        marks = [mark for message in said for mark in message.marks]
        assert [mark.modality for mark in marks] == ["image" if part is IMAGE else "audio" for part in shown]
        assert all(mark.at in (0, *breaks(message.text)) for message in said for mark in message.marks)
        for modality in sample.media:
            places = [number for number, mark in enumerate(marks) if mark.modality == modality]
            assert sample.list_media(modality) == tuple(bytes([place]) for place in places)


def breaks(text: str) -> list[int]:
    """Where the parts of a text begin, and its end."""
    return [*(place + 1 for place, character in enumerate(text) if character == "\n"), len(text)]
