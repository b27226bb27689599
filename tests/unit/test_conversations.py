"""Conversations as one sample per answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from perceptune.data.conversations import answers_of, mark_media, split_answers, tagged_history, tagged_prompt
from perceptune.data.lazy_rows import LazyRows
from perceptune.errors import UserError
from perceptune.types import Mark, Media, Message, Sample


def conversation(seed: int) -> Sample:
    """A conversation by chance: up to four turns, up to two media of a kind in each, some answers trained on."""
    draw = random.Random(seed)
    media: dict[str, list[Path]] = {"image": [], "audio": []}

    def asked() -> tuple[str, tuple[Mark, ...]]:
        text = "question " * draw.randint(1, 3)
        kinds = [kind for kind in media for _ in range(draw.choice([0, 0, 1, 2]))]
        places = sorted(draw.randint(0, len(text)) for _ in kinds)
        draw.shuffle(kinds)
        for kind in kinds:
            media[kind].append(Path(f"{kind}-{len(media[kind])}"))
        return text, tuple(Mark(at, kind) for at, kind in zip(places, kinds, strict=True))

    history = [Message("system", "Be brief.")] if draw.random() < 0.3 else []
    for turn in range(draw.randint(0, 3)):
        history += [Message("user", *asked())]
        history += [Message("assistant", f"answer {turn}", is_target=draw.random() < 0.7)]
    prompt, marks = asked()
    given: dict[str, Media] = {
        kind: tuple(found) if len(found) > 1 else found[0] for kind, found in media.items() if found
    }
    meta = {"answers": ["last"] * 10, "place": "beach"}
    return Sample(f"talk-{seed}", given, prompt, ("last",), meta, marks, tuple(history))


@pytest.mark.parametrize("seed", range(60))
def test_each_answer_has_the_turns_and_media_before_it(seed: int) -> None:
    whole = conversation(seed)
    parts = answers_of(whole)
    said = [message.text for message in whole.history if message.is_target]
    assert [part.targets for part in parts] == [*((text,) for text in said), ("last",)]
    if not said:
        assert parts == [whole], "a sample without answers that are trained on stays as it is"
        return
    assert [part.id for part in parts] == [f"{whole.id}/{number}" for number in range(1, len(parts) + 1)]
    for part in parts:
        assert not any(message.is_target for message in part.history)
        shown = [message.text for message in (*part.history, Message("user", part.prompt))]
        assert shown == [message.text for message in (*whole.history, Message("user", whole.prompt))][: len(shown)]
        marks = [mark for message in part.history for mark in message.marks] + list(part.marks)
        for kind in ("image", "audio"):
            media = part.list_media(kind)
            assert len(media) == sum(mark.modality == kind for mark in marks)
            assert media == whole.list_media(kind)[: len(media)], "the first ones, in order"
            assert (kind in part.media) == bool(media)
            assert isinstance(part.media.get(kind), tuple) == (len(media) > 1)
        assert part.meta["place"] == "beach"
        assert ("answers" in part.meta) == (part is parts[-1]), "the annotators answered the last question"
    last = parts[-1]
    assert (last.media, last.prompt, last.marks) == (whole.media, whole.prompt, whole.marks)
    assert [(one.text, one.marks) for one in last.history] == [(one.text, one.marks) for one in whole.history]


class Counted(LazyRows[Sample]):
    """Rows that count how often one is read."""

    def __init__(self, samples: list[Sample]) -> None:
        self.reads: list[int] = []

        def read(chosen: Any) -> Any:
            for index in chosen:
                self.reads.append(index)
                yield samples[index]

        super().__init__(read, range(len(samples)))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_rows_of_a_split_conversation_are_those_of_each_alone(is_lazy: bool) -> None:
    talks = [conversation(seed) for seed in range(12)]
    rows = split_answers(Counted(talks) if is_lazy else talks)
    wanted = [part for talk in talks for part in answers_of(talk)]
    assert list(rows) == wanted
    assert len(rows) == len(wanted)
    assert list(rows[3:9]) == wanted[3:9]
    assert rows[7] == wanted[7]
    picked = [5, 1, 1, 8, 2]
    assert isinstance(rows, LazyRows)
    assert list(rows.at(picked)) == [wanted[index] for index in picked]


def test_a_conversation_is_read_once_for_its_answers_in_a_row() -> None:
    lazy = Counted([conversation(seed) for seed in range(12)])
    rows = split_answers(lazy)
    lazy.reads.clear()
    assert len(list(rows)) > 12
    assert lazy.reads == [*range(12)]


def test_samples_of_one_answer_are_returned_as_they_are() -> None:
    rows = [Sample("a", {}, "color?"), Sample("b", {}, "color?", history=(Message("system", "Be brief."),))]
    assert split_answers(rows) is rows
    assert not split_answers([])


def test_texts_are_shown_with_the_places_of_the_media() -> None:
    first = Message("user", "this ?", (Mark(0, "image"), Mark(5, "audio")))
    sample = Sample("a", {"image": (Path("a"), Path("b"))}, "and that", (), {}, (Mark(8, "image"),), (
        first, Message("assistant", "red")))  # fmt: skip
    assert tagged_prompt(sample) == "and that<image>"
    assert tagged_history(sample) == [
        {"role": "user", "content": "<image>this <audio>?"}, {"role": "assistant", "content": "red"}
    ]  # fmt: skip
    assert tagged_prompt(Sample("a", {"image": Path("a")}, "what?")) == "what?"


PAIR = {"image": (Path("a"), Path("b"))}


@pytest.mark.parametrize(
    ("question", "media", "text", "places"),
    [
        ("which?", PAIR, "which?", []),
        ("from <image> to <image>?", PAIR, "from to ?", [(5, "image"), (8, "image")]),
        ("<image>\n<image>\nwhich is redder?\n", PAIR, "which is redder?", [(0, "image"), (0, "image")]),
        ("color? <image>", {"image": Path("a")}, "color?", [(6, "image")]),
        ("heard <audio>?", {"image": Path("a"), "audio": Path("s")}, "heard ?", [(0, "image"), (6, "audio")]),
        ("what is <video> in HTML?", {"image": Path("a")}, "what is <video> in HTML?", []),
    ],
)
def test_tags_in_a_question_are_places(question: str, media: Any, text: str, places: list[tuple[int, str]]) -> None:
    found, marks = mark_media(question, media)
    assert (found, [(mark.at, mark.modality) for mark in marks]) == (text, places)


@pytest.mark.parametrize(
    ("question", "media", "counts"),
    [("<image>?", PAIR, "1 `<image>` for 2"), ("<image> <image>?", {"image": Path("a")}, "2 `<image>` for 1"),
     ("<image>?", {}, "1 `<image>` for 0")],
)  # fmt: skip
def test_another_number_of_tags_than_media_is_an_error(question: str, media: Any, counts: str) -> None:
    with pytest.raises(UserError, match=f"the question has {counts} media of modality image"):
        mark_media(question, media)
