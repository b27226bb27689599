"""The forms in which conversations are written: media, tags, speakers, rows of one question, and what is refused."""

from __future__ import annotations

import base64
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from perceptune.data.records import Record
from perceptune.data.tasks.base import Task, is_conversation
from perceptune.errors import UserError
from perceptune.types import Sample
from shelves import media, put, task, there_and_back

pytestmark = pytest.mark.usefixtures("own_cache")

ASKED, ANSWER = {"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}
PLAIN = {"role": "user", "content": "What?"}


def read(folder: Path, *rows: Any, name: str = "messages", lines: bool = False, **options: Any) -> Task:
    media(folder, "a.jpg", "b.mp4", "c.wav", "d.jpg")
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    return task(name, train=put(folder / "talks.json", text), **options)


def both(folder: Path, *rows: Any, **options: Any) -> list[Sample]:
    """Return the samples, after checking that both readers, a list, lines and `examine` agree on them."""
    found = list(read(folder, *rows, **options).samples("train"))
    for name in ("messages", "llava"):
        for lines in (False, True):
            reader = read(folder, *rows, name=name, lines=lines, **options)
            assert list(reader.samples("train")) == found
            assert [sample for _, sample in reader.examine("train").rows] == found
    there_and_back(found, folder)
    return found


def says(*turns: Any) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


def asks(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def part(**keys: Any) -> dict[str, Any]:
    return {"type": None, "text": None, "image": None, **keys}


INLINE = "data:image/jpeg;base64," + base64.b64encode(b"pixels").decode()

# Rows whose one sample asks "What?", is answered "A cat." and has the image `a.jpg`.
ROWS: dict[str, Any] = {
    "list of one": {"image": ["a.jpg"], "conversations": says("<image>\nWhat?", "A cat.")},
    "images": {"images": ["a.jpg"], "conversations": says("<image>\nWhat?", "A cat.")},
    "images, text": {"images": "a.jpg", "messages": [ASKED, ANSWER]},
    "bytes and path": {"images": [{"bytes": None, "path": "a.jpg"}], "messages": [ASKED, ANSWER]},
    "image, object": {"image": {"bytes": None, "path": "a.jpg"}, "messages": [ASKED, ANSWER]},
    "named twice": {"image": "a.jpg", "images": ["a.jpg"], "messages": [ASKED, ANSWER]},
    "no tag": {"image": "a.jpg", "conversations": says("What?", "A cat.")},
    "nulls beside": {"image": None, "images": ["a.jpg"], "videos": [], "audios": None, "messages": [ASKED, ANSWER]},
    "ImageHere": {"image": "a.jpg", "conversations": says("<Img><ImageHere></Img> What?", "A cat.")},
    "placeholder": {"image": "a.jpg", "conversations": says("<image_placeholder>What?", "A cat.")},
    "special tokens": {
        "image": "a.jpg",
        "conversations": says("<|vision_start|><|image_pad|><|vision_end|>What?", "A cat."),
    },
    "numbered token": {"image": "a.jpg", "conversations": says("<|image_1|>\nWhat?", "A cat.")},
    "file in the text": {"conversations": says("Picture 1: <img>a.jpg</img>\nWhat?", "A cat.")},
    "file twice": {"image": "a.jpg", "conversations": says("Picture 1: <img>/old/a.jpg</img>\nWhat?", "A cat.")},
    "picture 1": {"image": "a.jpg", "conversations": says("Picture 1:\nWhat?", "A cat.")},
    "role and content": {"image": "a.jpg", "conversations": [ASKED, ANSWER]},
    "from and value": {"images": ["a.jpg"], "messages": says("<image>What?", "A cat.")},
    "conversation": {"image": "a.jpg", "conversation": says("<image>What?", "A cat.")},
    "dialog": {"image": "a.jpg", "dialog": says("<image>What?", "A cat.")},
    "names": {"image": "a.jpg", "messages": [{"from": "Human", "value": "What?"}, {"from": "bot", "value": "A cat."}]},
    "chatgpt": {"image": "a.jpg", "messages": [PLAIN, {"from": "chatgpt", "value": "A cat."}]},
    "null keys of turns": {
        "image": "a.jpg",
        "messages": [{"from": None, "value": None, **PLAIN}, {"from": None, "value": None, **ANSWER}],
    },
    "input parts": {"messages": [
        asks({"type": "input_image", "image_url": "a.jpg"}, {"type": "input_text", "text": "What?"}),
        {"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]}]},
    "parts with nulls": {"messages": [
        asks(part(type="image", image="a.jpg"), part(type="text", text="What?")),
        {"role": "assistant", "content": [part(type="text", text="A cat.")]}]},
    "parts without a type": {"messages": [asks(part(image="a.jpg"), "What?"), ANSWER]},
    "part of bytes and path": {"messages": [
        asks({"type": "image", "image": {"bytes": None, "path": "a.jpg"}}, "What?"), ANSWER]},
    "part beside": {"images": ["a.jpg"], "messages": [asks({"type": "image"}, "What?"), ANSWER]},
    "part named beside": {"images": ["a.jpg"], "messages": [
        asks({"type": "image", "image": "a.jpg"}, "What?"), ANSWER]},
    "image of a turn": {"messages": [{**PLAIN, "images": ["a.jpg"]}, ANSWER]},
    "query": {"query": "<image>What?", "response": "A cat.", "history": None, "images": ["a.jpg"]},
    "alpaca": {"instruction": "<image>What?", "input": "", "output": "A cat.", "images": ["a.jpg"]},
    "completion": {"prompt": [PLAIN], "completion": [ANSWER], "images": ["a.jpg"]},
    "chosen": {"prompt": [PLAIN], "chosen": [ANSWER], "rejected": [PLAIN], "images": ["a.jpg"]},
    "one turn chosen": {"image": "a.jpg", "conversations": [ASKED], "chosen": ANSWER, "rejected": PLAIN},
    "whole chosen": {"prompt": "What?", "chosen": [PLAIN, ANSWER], "rejected": None, "image": "a.jpg"},
}  # fmt: skip


@pytest.mark.parametrize("form", ROWS)
def test_forms_of_one_question_about_an_image(form: str, tmp_path: Path) -> None:
    [sample] = both(tmp_path, ROWS[form])
    assert (sample.prompt, sample.targets, sample.media) == ("What?", ("A cat.",), {"image": tmp_path / "a.jpg"})
    assert not sample.meta
    assert is_conversation(ROWS[form])


@pytest.mark.parametrize(
    "tag", ["<image>\n", "<video>\n", "", "<video_placeholder>", "<VideoHere>", "<image_placeholder>"]
)
@pytest.mark.parametrize("key", [{"video": "b.mp4"}, {"videos": ["b.mp4"]}])
def test_a_video_may_be_tagged_as_an_image(tag: str, key: dict[str, Any], tmp_path: Path) -> None:
    [sample] = both(tmp_path, {**key, "conversations": says(f"{tag}What?", "A cat jumps.")})
    assert (sample.prompt, sample.media) == ("What?", {"video": tmp_path / "b.mp4"})


@pytest.mark.parametrize("text", ["<audio>What?", "Audio 1: <audio>c.wav</audio>\nWhat?", "<SpeechHere>What?", "What?"])
def test_audio_of_other_programs(text: str, tmp_path: Path) -> None:
    [sample] = both(tmp_path, {"audios": "c.wav", "messages": says(text, "Rain.")})
    assert (sample.prompt, sample.media) == ("What?", {"audio": tmp_path / "c.wav"})


def test_an_image_tagged_in_every_turn_belongs_to_all(tmp_path: Path) -> None:
    talk = says("<image>\nWhat?", "A cat.", "<image>\nColour?", "Use <image> in HTML.", "And <video>?", 3)
    samples = one, two, three = both(tmp_path, {"id": 7, "image": "a.jpg", "conversations": talk})
    assert [sample.media for sample in samples] == [{"image": tmp_path / "a.jpg"}] * 3
    assert (one.prompt, two.prompt) == ("What?", "What?\nA cat.\nColour?")
    assert two.targets == ("Use <image> in HTML.",)
    assert three.prompt == "What?\nA cat.\nColour?\nUse <image> in HTML.\nAnd <video>?"
    assert three.targets == ("3",)
    first, second = (asks({"type": "image", "image": "a.jpg"}, text) for text in ("What?", "Colour?"))
    again = both(tmp_path, {"messages": [first, ANSWER, second, ANSWER]})
    assert [sample.media for sample in again] == [{"image": tmp_path / "a.jpg"}] * 2


@pytest.mark.parametrize("nothing", [None, "", [], [None], [""], {"bytes": None, "path": None}])
@pytest.mark.parametrize("key", ["image", "images"])
def test_no_medium(key: str, nothing: Any, tmp_path: Path) -> None:
    [sample] = both(tmp_path, {key: nothing, "conversations": says("Hi?", "Hello")})
    assert sample.media == {}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_precede_the_first_question(role: str, tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "messages": [{"role": role, "content": "Be brief."}, ASKED, ANSWER]},
        {"image": "a.jpg", "system": "Be brief.", "query": "What?", "response": "A cat."},
        {"image": "a.jpg", "system": "Be brief.", "instruction": "What?", "output": "A cat."},
    ]
    assert {(s.prompt, *s.targets) for s in both(tmp_path, *rows)} == {("Be brief.\nWhat?", "A cat.")}


def test_rows_of_one_question_with_earlier_turns(tmp_path: Path) -> None:
    rows = [
        {"query": "And?", "response": "Two.", "history": [["<image>What?", "A cat."]], "images": ["a.jpg"]},
        {"instruction": "And?", "input": "", "output": "Two.", "history": [["What?", "A cat."]], "image": "a.jpg"},
        {"instruction": "Count.", "input": "1 2", "output": 2, "image": "a.jpg"},
    ]
    *talks, counted = both(tmp_path, *rows)
    assert [sample.prompt for sample in talks] == ["What?", "What?\nA cat.\nAnd?"] * 2
    assert (counted.prompt, counted.targets) == ("Count.\n1 2", ("2",))


def test_only_the_completion_is_trained(tmp_path: Path) -> None:
    row = {"prompt": [PLAIN, ANSWER, {"role": "user", "content": "And?"}], "completion": [ANSWER], "image": "a.jpg"}
    [sample] = both(tmp_path, row)
    assert sample.prompt == "What?\nA cat.\nAnd?"
    [weighed] = both(tmp_path, {"messages": [PLAIN, {**ANSWER, "weight": 0}, PLAIN, {**ANSWER, "weight": 1}]})
    assert weighed.prompt == "What?\nA cat.\nWhat?"


@pytest.mark.parametrize(
    "content",
    [
        {"type": "image_url", "image_url": {"url": INLINE, "detail": "low"}},
        {"type": "input_image", "image_url": INLINE},
        {"type": "image", "image": {"bytes": base64.b64encode(b"pixels").decode(), "path": "gone.jpg"}},
    ],
)
def test_media_inside_rows_are_kept_in_the_cache(content: Any, tmp_path: Path) -> None:
    rows = [{"messages": [asks(content, "What?"), ANSWER]}, {"messages": [PLAIN, ANSWER], "image": INLINE}]
    first, second = both(tmp_path, *rows)
    [file] = {*first.media.values(), *second.media.values()}
    assert isinstance(file, Path)
    assert file.read_bytes() == b"pixels"


def test_media_inside_rows_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(put(tmp_path / "file", b"") / "below"))
    [sample] = read(tmp_path, {"messages": [PLAIN, ANSWER], "image": INLINE}).samples("train")
    assert isinstance(sample.media["image"], Path)
    assert sample.media["image"].read_bytes() == b"pixels"


def test_a_model_that_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = [{"from": "gpt", "value": "Hello!"}, *says("<image>\nWhat?", "A cat.")]
    rows = [{"image": "a.jpg", "conversations": talk}] * 2
    reader = read(tmp_path, *rows)
    for _ in range(2):
        samples = reader.samples("train")
        assert [(s.prompt, s.media) for s in samples] == [("What?", {"image": tmp_path / "a.jpg"})] * 2
        said = "2 conversations begin with the model, whose first turn is left out"
        assert capsys.readouterr().err.count(said) == 1
    examined = reader.examine("train")
    assert len(list(examined.rows)) == 2
    assert said in examined.form()
    both(tmp_path, *rows)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    other = {"image": "a.jpg", "conversations": says("<img>x.jpg</img>What?", "A cat.")}
    reader = read(tmp_path, ROWS["chosen"], other, ROWS["file twice"])
    assert {sample.media["image"] for sample in reader.samples("train")} == {tmp_path / "a.jpg"}
    assert reader.form("train") == [
        "1 conversation has rejected answers, which are not read",
        "1 conversation names another file in its text than beside it, which is the one read",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": ["a.jpg", "d.jpg"], "messages": [ASKED, ANSWER]}, "1 `<image>` .*, but 2 images given"),
        ({"image": "d.jpg", "images": ["a.jpg"], "messages": [ASKED, ANSWER]}, r"more than one image.*d\.jpg, a\.jpg"),
        ({"image": "a.jpg", "conversations": says("<ImageHere><ImageHere>?", "a")}, "2 `<image>` in a turn, but 1 im"),
        ({"conversations": says("<ImageHere>What?", "a")}, "`<ImageHere>` in the conversation, but no image"),
        ({"image_path": "a.jpg", "conversations": says("<image>What?", "a")}, "`image_path`.*image_key: image_path"),
        ({"audio": "c.wav", "conversations": says("<image>What?", "a")}, "1 `<image>` in a turn, but 0 image"),
        ({"image": 3, "conversations": says("What?", "a")}, "`image` is a number, not the name of a file"),
        ({"images": [["a.jpg"]], "conversations": says("What?", "a")}, r"`images\[0\]` is a list"),
        ({"image": {"name": "a.jpg"}, "conversations": says("What?", "a")}, "`image` is an object without `path`"),
        ({"image": "data:image/png,abc", "conversations": says("What?", "a")}, "`image`: .*data:TYPE;base64,DATA"),
        ({"image": "data:image/png;base64,%%", "conversations": says("What?", "a")}, "`image`: .*not base64"),
        ({"messages": [ASKED, {"role": "tool", "content": "x"}]}, r"`messages\[1\]`: .*`tool`.*tools"),
        ({"messages": [ASKED, {"role": "function", "content": "x"}]}, r"`messages\[1\]`: .*`function`.*tools"),
        ({"messages": [PLAIN, {**ANSWER, "content": None, "tool_calls": [{}]}]}, r"`messages\[1\]`: .*`tool_calls`"),
        ({"messages": [PLAIN, {**ANSWER, "content": [{"type": "image"}]}]}, "the model answers with image"),
        ({"messages": [PLAIN, {"role": "asistant", "content": "x"}]}, "unknown `role` `asistant`; did you mean"),
        ({"messages": [PLAIN, {"role": "assistant", "text": "x"}]}, "no key `content`"),
        ({"messages": [PLAIN, {**ANSWER, "content": True}]}, "`content` is a boolean, not a string"),
        ({"messages": [PLAIN, {**ANSWER, "content": None}]}, "`content` is null, not a string"),
        ({"messages": [asks({"type": "imge"})]}, r"content\[0\]`: unknown type `imge`; did you mean `image`"),
        ({"messages": [asks({"type": "text", "text": None})]}, r"content\[0\].text` is null"),
        ({"image": "a.jpg", "conversations": [{"from": "gpt", "value": "A cat."}]}, "only the model speaks.*`jsonl`"),
        ({"dialog": says("a", "b"), "dialogue": says("a", "b")}, "both `dialog` and `dialogue`"),
        ({"prompt": [ASKED], "completion": [PLAIN, ANSWER]}, "`completion` begins with a turn of the user"),
        ({"query": "What?", "response": "A.", "history": ["a", "b"]}, r"`history\[0\]` is a string, not a pair"),
        ({"question": "What?"}, "no key `messages`"),
        ({"messages": [{**PLAIN, "weight": 0}, {**ANSWER, "weight": 0}]}, "no question with an answer"),
    ],
)  # fmt: skip
def test_refusals_name_the_row(row: Any, message: str, tmp_path: Path) -> None:
    good = {"messages": [PLAIN, ANSWER]}
    with pytest.raises(UserError, match=rf"talks\.json, line 2: .*{message}") as raised:
        read(tmp_path, good, row, lines=True).samples("train")
    assert "\n" not in str(raised.value)
    [_, *_, error] = [row for _, row in [(0, None), *read(tmp_path, good, row, lines=True).examine("train").rows]]
    assert str(error) == str(raised.value)


def test_keys_of_media(tmp_path: Path) -> None:
    row = {"file": "a.jpg", "conversations": says("<image>What?", "A cat.")}
    [sample] = both(tmp_path, row, image_key="file")
    assert sample.media == {"image": tmp_path / "a.jpg"}
    with pytest.raises(UserError, match=r"talks\.json: no row has the key `fil` of `image_key`; did you mean `file`"):
        read(tmp_path, {**row, "conversations": says("What?", "A cat.")}, image_key="fil").samples("train")


@pytest.mark.parametrize(
    "row", [{}, {"image": "a.jpg", "caption": "a cat"}, {"image": "a.jpg", "prompt": "What?", "targets": "a"},
            {"messages": "text"}, {"messages": []}, {"conversations": ["a", "b"]}, {"prompt": "a", "completion": "b"},
            {"conversations": [{"question": "a"}]}, {"query": ["a"], "response": "b"}, {"instruction": "a"}],
)  # fmt: skip
def test_rows_that_are_no_conversation(row: dict[str, Any]) -> None:
    assert not is_conversation(row)


def damaged(value: Any, rng: random.Random) -> Any:
    """Return a copy of a row in which one value anywhere is another one, or is missing."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        chosen = rng.choice(keys)
        items = {key: damaged(value[key], rng) if key == chosen else value[key] for key in keys}
        if rng.random() < 0.1:
            del items[chosen]
        return items if isinstance(value, dict) else list(items.values())
    texts = ("", "<image>", "<image_2>", "Picture 2: <image>", "<img>b.jpg</img>", "assistant", "text", "data:,")
    return rng.choice([*texts, None, 3, True, 1e400, [], [None], {}, {"path": 3}, [{}], [["a", "b"]], ["a", "b"]])


def test_damaged_rows_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    readers: list[Any] = [read(tmp_path, ROWS["images"], turns=turns) for turns in ("each", "all")]
    for form in ROWS:
        for _ in range(60):
            row = ROWS[form]
            for _ in range(rng.choice([1, 1, 2, 3])):
                row = damaged(row, rng)
            if isinstance(row, dict):
                is_conversation(row)
                for reader in readers:
                    with suppress(UserError):
                        reader._rows_of(Record("row", row, ()))
