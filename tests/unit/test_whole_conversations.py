"""Conversations with several media, and conversations as one sample: read, converted and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.tasks.base import to_messages, to_row
from perceptune.errors import UserError
from perceptune.tools.datasets.convert import convert
from perceptune.types import Mark, Message, Sample
from shelves import media, put, task

pytestmark = pytest.mark.usefixtures("own_cache")

A, B, C = "a.jpg", "b.jpg", "c.jpg"
SYSTEM = {"role": "system", "content": "Be brief."}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def model(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def image(*places: int) -> tuple[Mark, ...]:
    return tuple(Mark(at, "image") for at in places)


def read(folder: Path, *turns: Any, turns_of: str = "all", **row: Any) -> list[Sample]:
    media(folder, A, B, C, "d.wav")
    file = put(folder / "talks.jsonl", {"messages": [*turns], **row})
    return list(task("messages", train=file, turns=turns_of).samples("train"))


def names(sample: Sample, modality: str = "image") -> list[str]:
    return [medium.name for medium in sample.list_media(modality) if isinstance(medium, Path)]


class TestWhole:
    def test_one_sample_holds_every_turn(self, tmp_path: Path) -> None:
        [sample] = read(
            tmp_path, SYSTEM, user("<image>\nWhat?"), model("A cat."), user("And in <image>?"), model("A dog."),
            images=[A, B], id="7", source="x",
        )  # fmt: skip
        assert (sample.id, sample.prompt, sample.targets, sample.marks) == ("7", "And in ?", ("A dog.",), image(7))
        assert names(sample) == [A, B]
        assert sample.meta == {"source": "x"}
        assert sample.history == (
            Message("system", "Be brief."),
            Message("user", "What?", image(0)),
            Message("assistant", "A cat.", is_target=True),
        )

    def test_one_question_is_the_sample_of_each(self, tmp_path: Path) -> None:
        [whole] = read(tmp_path, user("What?"), model("A cat."), image=A)
        assert [whole] == read(tmp_path, user("What?"), model("A cat."), image=A, turns_of="each")
        assert (whole.media, whole.marks, whole.history) == ({"image": tmp_path / A}, (), ())

    def test_media_without_tags_belong_to_the_first_question(self, tmp_path: Path) -> None:
        [sample] = read(tmp_path, SYSTEM, user("Same?"), model("No."), user("Why?"), model("Red."), images=[A, B])
        assert sample.history[1] == Message("user", "Same?", image(0, 0))
        assert (sample.marks, names(sample)) == ((), [A, B])
        [first] = read(tmp_path, SYSTEM, user("Same?"), model("No."), images=[A, B])
        assert (first.history, first.marks, names(first)) == ((Message("system", "Be brief."),), (), [A, B])

    def test_media_in_a_turn_belong_to_it(self, tmp_path: Path) -> None:
        parts = [{"type": "text", "text": "Compare "}, {"type": "image", "image": B}, {"type": "image", "image": A}]
        turns = [user("What?"), model("Nothing."), user(parts), model("Same."), user("Hm?", images=[C, A]), model("x")]
        [sample] = read(tmp_path, *turns)
        assert sample.history[0] == Message("user", "What?")
        assert sample.history[2] == Message("user", "Compare", image(7, 7))
        assert (sample.marks, names(sample)) == (image(0, 0), [B, A, C, A])
        listed = [{"type": "image"}, {"type": "text", "text": "What?"}]
        [beside] = read(tmp_path, user(listed), model("a"), user(listed), model("b"), images=[A, B])
        assert (beside.history[0].marks, beside.marks, names(beside)) == (image(0), image(0), [A, B])

    def test_one_medium_tagged_twice_belongs_to_the_first(self, tmp_path: Path) -> None:
        [sample] = read(tmp_path, user("<image>?a"), model("b"), user("<image>?c"), model("d"), image=A)
        assert (sample.history[0].marks, sample.marks, names(sample)) == (image(0), (), [A])

    def test_numbers_count_over_the_conversation(self, tmp_path: Path) -> None:
        turns = [user("<image_2>c"), model("a"), user("<image_1>d <image_3>"), model("b")]
        [sample] = read(tmp_path, *turns, images=[A, B, C])
        assert names(sample) == [B, A, C]
        restarted = [user("Picture 1: <image>a"), model("a"), user("Picture 1: <image>b"), model("b")]
        assert names(read(tmp_path, *restarted, images=[A, B])[0]) == [A, B]
        named = [user("Picture 1: <img>b.jpg</img>a"), model("a"), user("Picture 2: <img>a.jpg</img>b"), model("b")]
        assert names(read(tmp_path, *named)[0]) == names(read(tmp_path, *named, images=[A, B])[0]) == [B, A]

    def test_the_end_is_the_last_answer_that_is_trained(self, tmp_path: Path) -> None:
        turns = [
            user("<image>a"),
            model("b", weight=0),
            user("c"),
            model("d"),
            user("<image>e"),
            model("f", loss=False),
        ]
        [sample] = read(tmp_path, *turns, user("g"), images=[A, B])
        assert (sample.prompt, sample.targets, names(sample)) == ("c", ("d",), [A])
        assert sample.history == (Message("user", "a", image(0)), Message("assistant", "b"))

    def test_turns_of_one_speaker_are_one(self, tmp_path: Path) -> None:
        turns = [SYSTEM, SYSTEM, user("a"), user("b <image>"), model("c"), model("d"), user("e"), model("f")]
        [sample] = read(tmp_path, *turns, images=[A])
        assert [(m.role, m.text, m.marks) for m in sample.history] == [
            ("system", "Be brief.\nBe brief.", ()), ("user", "a\nb", image(3)), ("assistant", "c\nd", ()),
        ]  # fmt: skip

    def test_two_keys_of_one_modality(self, tmp_path: Path) -> None:
        [sample] = read(tmp_path, user("<image><image>a"), model("b"), image=A, images=[A, B])
        assert names(sample) == [A, B]
        with pytest.raises(UserError, match=r"line 1: more than one image at two keys \(a\.jpg, c\.jpg, b\.jpg\)"):
            read(tmp_path, user("a"), model("b"), image=A, images=[C, B])

    def test_the_model_begins(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        [sample] = read(tmp_path, model("Hello!"), user("a"), model("b"), user("c"), model("d"))
        assert [message.role for message in sample.history] == ["user", "assistant"]
        assert "1 conversation begins with the model, whose first turn is left out" in capsys.readouterr().err

    def test_an_empty_system_message_is_none(self, tmp_path: Path) -> None:
        [sample] = read(tmp_path, {"role": "system", "content": " "}, user("a"), model("b"))
        assert sample.history == ()

    @pytest.mark.parametrize(
        ("turns", "message"),
        [
            ([user("<image>?a"), model("b")], "1 `<image>` in the conversation, but 2 images given"),
            ([user("<image><image>?"), model("b"), user("<image>"), model("c")], "3 `<image>` .* 2 images"),
            ([user("<image>a"), model("b"), user("<image>c", image=C), model("d")], "2 `<image>` .* 3 images"),
            ([{**SYSTEM, "content": "<image>"}, user("<image>"), model("b")], "system message holds image"),
            ([user("a"), model("b"), {**SYSTEM}, user("c"), model("d")], "system message follows other turns"),
            ([user("a"), model(""), user("c"), model("d")], "an answer of the conversation holds no text"),
            ([SYSTEM, model("d")], "no question with an answer"),
            ([user("a"), model("d", weight=0)], "no question with an answer"),
        ],
    )  # fmt: skip
    def test_refusals(self, turns: Any, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=rf"talks\.jsonl, line 1: .*{message}"):
            read(tmp_path, *turns, images=[A, B])

    def test_without_history(self) -> None:
        with pytest.raises(UserError, match="`history: false` leaves earlier turns out"):
            task("messages", train="x", turns="all", history=False)


class TestEach:
    TURNS = (user("<image>a"), model("b <image>"), user("c <image>"), model("d"))

    @pytest.mark.parametrize("turns", ["each", "first", "last"])
    def test_media_of_own_and_earlier_turns(self, turns: str, tmp_path: Path) -> None:
        found = read(tmp_path, SYSTEM, *self.TURNS, images=[A, B], turns_of=turns, id="7")
        wanted = [("7", "Be brief.\na", [A], image(10)), ("7/2", "Be brief.\na\nb <image>\nc", [A, B], image(10, 23))]
        wanted = wanted[{"each": slice(2), "first": slice(1), "last": slice(1, 2)}[turns]]
        assert [(s.id, s.prompt, names(s), s.marks) for s in found] == wanted
        assert not any(sample.history for sample in found)

    def test_without_history(self, tmp_path: Path) -> None:
        media(tmp_path, A, B)
        file = put(tmp_path / "talks.jsonl", {"messages": [*self.TURNS], "images": [A, B]})
        found = task("messages", train=file, history=False).samples("train")
        assert [(s.prompt, names(s), s.marks) for s in found] == [("a", [A], image(0)), ("c", [A, B], image(0, 1))]

    def test_untagged(self, tmp_path: Path) -> None:
        found = read(tmp_path, user("a"), model("b"), user("c"), model("d"), images=[A, B], turns_of="each")
        assert [(names(sample), sample.marks) for sample in found] == [([A, B], ())] * 2


# Converting

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f"x {text} y".strip())
kinds = st.lists(st.sampled_from(["image", "image", "audio"]), max_size=3)
FILES = {"image": [A, B, C], "audio": ["d.wav"]}


@st.composite
def marked(draw: st.DrawFn) -> tuple[str, tuple[Mark, ...], list[str]]:
    """Return a text, its marks, and the files at them."""
    text = draw(texts)
    places = sorted((draw(st.integers(0, len(text))), kind) for kind in draw(kinds))
    found = [Mark(at, kind) for at, kind in sorted(places, key=lambda place: place[0])]
    # White space around a tag belongs to it.
    found = [mark for mark in found if not text[max(mark.at - 1, 0) : mark.at].isspace()]
    return text, tuple(found), [draw(st.sampled_from(FILES[mark.modality])) for mark in found]


def gathered(folder: Path, parts: list[tuple[tuple[Mark, ...], list[str]]]) -> dict[str, Any]:
    found: dict[str, list[Path]] = {}
    for marks, files in parts:
        for mark, file in zip(marks, files, strict=True):
            found.setdefault(mark.modality, []).append(folder / file)
    return {modality: tuple(some) if len(some) > 1 else some[0] for modality, some in found.items()}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    media(folder, A, B, C, "d.wav")
    return folder


def there_and_back(folder: Path, row: dict[str, Any], name: str, **options: Any) -> Sample:
    file = put(folder / "out.jsonl", row)
    [sample] = task(name, train=file, **options).samples("train")
    return sample


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_random_rows_come_back(shelf: Path, data: st.DataObject) -> None:
    text, marks, files = data.draw(marked())
    media = gathered(shelf, [(marks, files)])
    if all(not isinstance(some, tuple) for some in media.values()) or data.draw(st.booleans()):
        marks = ()
    sample = Sample("7", media, text, ("a", "b"), {"page": 3}, marks)
    assert there_and_back(shelf, to_row(sample, shelf), "jsonl") == sample


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_random_conversations_come_back(shelf: Path, data: st.DataObject) -> None:
    history, parts = list[Message](), []
    if data.draw(st.booleans()):
        history.append(Message("system", data.draw(texts)))
    for _ in range(data.draw(st.integers(0, 2))):
        text, marks, files = data.draw(marked())
        history.append(Message("user", text, marks))
        history.append(Message("assistant", data.draw(texts), (), data.draw(st.booleans())))
        parts.append((marks, files))
    text, marks, files = data.draw(marked())
    sample = Sample("7", gathered(shelf, [*parts, (marks, files)]), text, (data.draw(texts),), {"page": 3}, marks,
                    tuple(history))  # fmt: skip
    if len({*parts_files(parts, files)}) == 1 and sum(len(some) for _, some in parts) + len(files) > 1:
        return  # one file again and again is one medium
    assert there_and_back(shelf, to_messages(sample, shelf), "messages", turns="all") == sample


def parts_files(parts: list[tuple[tuple[Mark, ...], list[str]]], files: list[str]) -> list[str]:
    return [file for _, some in parts for file in some] + files


def test_data_convert_writes_conversations(tmp_path: Path) -> None:
    media(tmp_path, A, B)
    rows = [
        {"id": "1", "messages": [user("Hi"), model("Hello")]},
        {"id": "2", "messages": [SYSTEM, user("<image>a"), model("b"), user("<image>c"), model("d")], "images": [A, B]},
    ]
    file = put(tmp_path / "in.json", rows)
    found = task("messages", train=file, turns="all").samples("train")
    assert convert("messages", tmp_path / "out.jsonl", [f"task.train={file}", "task.turns=all"]) == 2
    again = task("messages", train=tmp_path / "out.jsonl", turns="all").samples("train")
    assert list(again) == list(found)


def test_data_convert_writes_lists(tmp_path: Path) -> None:
    media(tmp_path, A, B)
    row = {"id": "1", "image": [A, B], "prompt": "Is <image> like <image>?", "targets": ["no"]}
    assert convert(str(put(tmp_path / "in.jsonl", row)), tmp_path / "out.jsonl") == 1
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert written["image"] == [A, B]
    assert list(task("jsonl", train=tmp_path / "out.jsonl").samples("train")) == list(
        task("jsonl", train=tmp_path / "in.jsonl").samples("train")
    )


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("7", {}, "a", ("b", "c"), history=(Message("system", "s"),)), "it has 2 targets, but beside conv"),
        (Sample("7", {}, "a", ("b",), {"chosen": {"role": "assistant", "content": "z"}}, (),
                (Message("system", "s"),)), "its .* would be read as another one"),
        (Sample("7", {}, " a", ("b",), history=(Message("system", "s"),)), "its prompt would be read as another"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_written(sample: Sample, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sample `7` cannot be written: .*{message}"):
        to_messages(sample, tmp_path)


def test_a_prompt_that_cannot_be_written(tmp_path: Path) -> None:
    pair = (tmp_path / A, tmp_path / B)
    with pytest.raises(UserError, match="sample `7` cannot be written: its prompt"):
        to_row(Sample("7", {"image": pair}, "a\nsaid <image> and <image>", ("b",)), tmp_path)
