"""Readers of the user's own files: conversations, tables, folders, data sets of `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perceptune.config.recipe import validate
from perceptune.config.registry import leaf
from perceptune.errors import UserError
from shelves import MARK, media, put, task, there_and_back

pytestmark = pytest.mark.usefixtures("own_cache")


def says(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


TALK = {"id": "t", "image": "a.jpg", "conversations": says("<image>\nWhat?", "A cat.", "Où?\nHere?", "là")}
TEXT = {"id": "u", "conversations": says("Write a page with <video>.", "<video></video>")}


def llava(folder: Path, *rows: Any, **options: Any) -> Any:
    media(folder, "a.jpg")
    return task("llava", train=put(folder / "talks.json", list(rows)), **options)


def test_each_answer_of_a_conversation_is_a_sample(tmp_path: Path) -> None:
    first, second, text = samples = llava(tmp_path, TALK, TEXT).samples("train")
    assert (first.id, first.prompt, first.targets) == ("t", "What?", ("A cat.",))
    assert (second.id, second.prompt, second.targets) == ("t/2", "What?\nA cat.\nOù?\nHere?", ("là",))
    assert first.media == second.media == {"image": tmp_path / "a.jpg"}
    assert (text.media, text.prompt, text.targets) == ({}, "Write a page with <video>.", ("<video></video>",))
    there_and_back(samples, tmp_path)


def test_which_turns_and_whether_with_what_was_said_before(tmp_path: Path) -> None:
    def prompts(**options: Any) -> list[str]:
        return [sample.prompt for sample in llava(tmp_path, TALK, **options).samples("train")]

    assert prompts(turns="first") == ["What?"]
    assert prompts(turns="last") == ["What?\nA cat.\nOù?\nHere?"]
    assert prompts(history=False) == ["What?", "Où?\nHere?"]


def test_a_picture_is_seen_from_its_tag_on(tmp_path: Path) -> None:
    talk = {"image": "a.jpg", "conversations": says("Hi", "Hello", "What is <image> here?", "A cat")}
    before, after = llava(tmp_path, talk).samples("train")
    assert before.media == {}
    assert (after.media, after.prompt) == ({"image": tmp_path / "a.jpg"}, "Hi\nHello\nWhat is here?")


def test_conversations_one_a_line(tmp_path: Path) -> None:
    lines = MARK + b"\r\n".join(json.dumps(row).encode() for row in (TALK, TEXT))
    whole = llava(tmp_path, TALK, TEXT).samples("train")
    path = put(tmp_path / "talks", lines, zipped=True)
    assert list(task("llava", train=path).samples("train")) == list(whole)


def test_ids_that_repeat_can_be_numbers_instead(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"talks\.json, line 1: the id `t` is that of line 1, too.*number_rows"):
        llava(tmp_path, TALK, TALK).samples("train")
    assert [s.id for s in llava(tmp_path, TALK, TEXT, number_rows=True).samples("train")][2] == "train-000003"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": says("<image>What?", "a")}, "1 `<image>` in a turn, but 0 image given"),
        ({**TALK, "conversations": says("<image><image>", "a")}, "2 `<image>` .* but 1"),
        ({**TALK, "conversations": says("<image>What?")}, "no question with an answer"),
        ({**TALK, "conversations": says("<image>What?", " .")}, "`targets` holds no text"),
        ({**TALK, "conversations": {}}, "`conversations` is an object, not a list"),
        ({**TALK, "conversations": ["a"]}, r"`conversations\[0\]` is a string, not an object"),
        ({**TALK, "conversations": [{"form": "human", "value": ""}]}, r"`conversations\[0\]`: no key `from`.*mean"),
        ({**TALK, "conversations": [{"from": "humn", "value": ""}]}, "unknown `from` `humn`; did you mean `human`"),
        ({"image": "a.jpg", "conversatons": []}, r"no key `conversations`, but `conversatons`; did you mean"),
        ({**TALK, "image": "b.jpg"}, r"cannot read `image` b\.jpg"),
        ({**TALK, "image": "http://a.org/b.jpg"}, "`image` is an address"),
        ({**TALK, "weight": float("nan")}, "NaN is no number in JSON"),
        ("text", "a string in the list, not an object"),
    ],
)
def test_errors_in_conversations_name_the_line(row: Any, message: str, tmp_path: Path) -> None:
    good = {**TEXT, "id": "good"}
    path = put(tmp_path / "talks.json", f"[{json.dumps(good)},\n\n{json.dumps(row)}]")
    media(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=rf"talks\.json, line 3: .*{message}"):
        task("llava", train=path).samples("train")


def chat(*turns: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)], **more}


def test_messages(tmp_path: Path) -> None:
    media(tmp_path, "a.jpg", "b.wav")
    parts = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What?"}]
    rows = [
        chat("<image>What?", "a cat", images=["a.jpg"], id=3, source="x"),
        chat("What?", "a cat", images=[{"path": "a.jpg"}], audios=["b.wav"]),
        chat(parts, [{"type": "text", "text": "a cat"}]),
        chat([{"type": "image_url", "image_url": {"url": "a.jpg"}}, parts[1]], "a cat"),
        chat([{"type": "image"}, parts[1]], "a cat", images=["a.jpg"]),
        {"messages": [{"role": "system", "content": "Be brief."}, *chat("Hi", "Hello")["messages"]]},
    ]
    *pictures, text = samples = task("messages", train=put(tmp_path / "c.json", rows)).samples("train")
    assert {(s.prompt, s.targets, s.media["image"]) for s in pictures} == {("What?", ("a cat",), tmp_path / "a.jpg")}
    assert (samples[0].id, samples[0].meta) == ("3", {"source": "x"})
    assert samples[1].media["audio"] == tmp_path / "b.wav"
    assert (text.prompt, text.media) == ("Be brief.\nHi", {})
    there_and_back(samples, tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat("<image>a", "b", images=["a.jpg", "a.jpg"]), "1 `<image>` .* but 2 images"),
        (chat("<image><image>a", "b", images=["a.jpg"]), "2 `<image>` .* but 1"),
        (chat("a", "b", images=[3]), r"`images\[0\]` is a number"),
        (chat([{"type": "imge"}], "b"), r"`content\[0\]`: unknown type `imge`; did you mean `image`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turns of tools are not read"),
    ],
)
def test_errors_in_messages_name_the_line(row: Any, message: str, tmp_path: Path) -> None:
    media(tmp_path, "a.jpg")
    path = put(tmp_path / "c.jsonl", f"{json.dumps(chat('a', 'b'))}\n{json.dumps(row)}")
    with pytest.raises(UserError, match=rf"c\.jsonl, line 2: .*{message}"):
        task("messages", train=path).samples("train")


TABLE = 'image,prompt,targets,id,source\r\n1.jpg,"what, é?",cat|a cat,x,3\r\n,and?,"a\nb",y,\r\n'


def table(folder: Path, text: str | bytes = TABLE, name: str = "rows.csv", **options: Any) -> Any:
    media(folder, "1.jpg")
    return task("csv", train=put(folder / name, text), **options)


def test_a_table(tmp_path: Path) -> None:
    first, second = samples = table(tmp_path, MARK + TABLE.encode()).samples("train")
    assert first.media == {"image": tmp_path / "1.jpg"}
    assert (first.id, first.prompt, first.targets) == ("x", "what, é?", ("cat", "a cat"))
    assert first.meta == {"source": "3"}
    assert (second.media, second.targets) == ({}, ("a\nb",))
    there_and_back(samples, tmp_path)
    tabs = TABLE.replace(",", "\t").replace("what\t", "what,")
    assert list(table(tmp_path, tabs, "rows.tsv").samples("train")) == list(samples)


def test_a_table_with_columns_of_its_own(tmp_path: Path) -> None:
    text = "file;q;c1;c2\n1.jpg;what?;a;b|c\n"
    keys = {"image_key": "file", "prompt_key": "q", "target_key": ["c1", "c2"], "target_separator": "/"}
    [sample] = table(tmp_path, text, delimiter=";", **keys).samples("train")
    assert (sample.id, sample.prompt, sample.targets, sample.meta) == ("train-000001", "what?", ("a", "b|c"), {})


def test_captions_in_a_table_need_no_prompt(tmp_path: Path) -> None:
    reader = table(tmp_path, "image,caption\n1.jpg,a cat\n", metric="CIDEr")
    [sample] = reader.samples("train")
    assert (sample.prompt, sample.targets, reader.metric) == ("", ("a cat",), "CIDEr")
    [sample] = task("csv", train=tmp_path / "rows.csv", prompt="what is it?").samples("train")
    assert sample.prompt == "what is it?", "for all rows, and made anew for another setting"


def test_own_captions_report_rouge_if_asked(tmp_path: Path) -> None:
    reader = table(tmp_path, "image,caption\n1.jpg,a cat\n", metric="CIDEr", rouge=True)
    found = reader.score(["a dog"], reader.samples("train")).summary
    assert (found["rouge1_f1_mean"], found["rougeL_recall_best"]) == (0.5, 0.5)
    with pytest.raises(UserError, match=r"`rouge` is for captions.*`metric`"):
        validate(
            leaf("tasks", "csv").module.TASK.Options, {"train": str(tmp_path / "rows.csv"), "rouge": True}, "recipe"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,prompt,targets\n1.jpg,a\n", "line 2: 2 columns, expected 3"),
        ("image,prompt,targets\n1.jpg,a, \n", "line 2: `targets` is empty"),
        ("image,prompt,targets,id\n1.jpg,a,b,\n", "line 2: `id` is empty"),
        ("image,prompt,targets,id\n1.jpg,a,b,x\n\n1.jpg,a,b,x\n", "line 4: the id `x` is that of line 2, too"),
        ("image,prompt,image\n1.jpg,a,b\n", "line 1: two columns are called `image`"),
        ("imag,prompt,targets\n1.jpg,a,b\n", "line 2: no key `image`.* did you mean `image`"),
        ("image,promt,targets\n1.jpg,a,b\n", "line 2: no key `prompt`.* did you mean `prompt`.*given by `prompt_key`"),
        ("image,prompt,target\n1.jpg,a,b\n", "line 2: no key `targets`.* did you mean `targets`"),
        ("image,prompt,targets\n2.jpg,a,b\n", r"line 2: cannot read `image` 2\.jpg: .*did you mean `1\.jpg`"),
        ("image,prompt,targets\n1.jpg,a,\u043e\u043a\u043d\u043e\n".encode("cp1251"), "line 2: not UTF-8.*`encoding`"),
        ("image,prompt,targets\n", "holds no samples"),
    ],
)
def test_errors_in_a_table_name_the_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.csv(, | ){message}"):
        table(tmp_path, text).samples("train")


def test_some_media_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "image,prompt,targets\n" + "".join(f"{n % 3}.jpg,what {n},b\n" for n in range(6))
    samples = table(tmp_path, text, skip_missing=2).samples("train")
    assert [sample.prompt for sample in samples] == ["what 1", "what 4"]
    assert samples[-1].prompt == "what 4"
    assert "train: 2 media are missing; 4 samples are left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"line 2: .* 1 more files are missing"):
        table(tmp_path, text, skip_missing=1).samples("train")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_folder_with_metadata(name: str, tmp_path: Path) -> None:
    media(tmp_path, "train/deep/1.jpg", "train/deep/2.wav")
    rows = [{"file_name": "1.jpg", "text": "été", "page": "3"}, {"file_name": "2.wav", "text": "b", "page": "4"}]
    place = tmp_path / "train/deep" / name
    if name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), place)
    elif name.endswith("csv"):
        put(place, "file_name,text,page\n1.jpg,été,3\n2.wav,b,4\n")
    else:
        put(place, "\n".join(json.dumps(row) for row in rows))
    first, second = samples = task("folder", train=tmp_path / "train", allow_empty_prompt=True).samples("train")
    assert (first.media, first.targets) == ({"image": tmp_path / "train/deep/1.jpg"}, ("été",))
    assert (second.media, second.meta) == ({"audio": tmp_path / "train/deep/2.wav"}, {"page": "4"})
    there_and_back(samples, tmp_path)


def test_a_folder_with_several_media_and_questions(tmp_path: Path) -> None:
    media(tmp_path, "1.jpg", "1.wav")
    row = {"image_file_name": "1.jpg", "audio_file_name": "1.wav", "question": "what?", "answers": ["a"], "y": ["b"]}
    put(tmp_path / "metadata.jsonl", row)
    [sample] = task("folder", train=tmp_path, prompt_key="question", target_key="y").samples("train")
    assert {key: path.name for key, path in sample.media.items()} == {"image": "1.jpg", "audio": "1.wav"}
    assert (sample.prompt, sample.targets, sample.meta) == ("what?", ("b",), {"answers": ["a"]})


def test_a_folder_of_folders_names_its_classes(tmp_path: Path) -> None:
    media(tmp_path, "red/1.jpg", "red/2.JPG", "blue/3.png", "blue/notes.txt")
    samples = task("folder", train=tmp_path, prompt="which colour?").samples("train")
    found = [(s.id, s.prompt, s.targets) for s in samples]
    assert found == [
        ("blue/3.png", "which colour?", ("blue",)),
        ("red/1.jpg", "which colour?", ("red",)),
        ("red/2.JPG", "which colour?", ("red",)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"filename": "1.jpg", "text": "a"}, "line 1: no key `file_name`, but `filename`; did you mean"),
        ({"file_name": "1.jgp", "text": "a"}, r"line 1: `file_name` 1\.jgp: no medium has this suffix; did you"),
        ({"file_name": "1.jpg", "image_file_name": "1.jpg", "text": "a"}, "more than one image"),
        ({"file_name": "2.jpg", "text": "a"}, r"line 1: cannot read `image` 2\.jpg"),
        ({"file_name": "1.jpg"}, "line 1: no key `targets`"),
    ],
)  # fmt: skip
def test_errors_in_metadata_name_the_line(row: Any, message: str, tmp_path: Path) -> None:
    media(tmp_path, "1.jpg")
    put(tmp_path / "metadata.jsonl", row)
    with pytest.raises(UserError, match=rf"metadata\.jsonl, {message}|{message}"):
        task("folder", train=tmp_path, prompt="?").samples("train")


def test_folders_that_are_none_or_say_things_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder; task `folder` reads media with"):
        task("folder", train=put(tmp_path / "a.jsonl", "{}")).samples("train")
    put(tmp_path / "metadata.jsonl", {"file_name": "1.jpg"})
    put(tmp_path / "metadata.csv", "file_name,text\n")
    with pytest.raises(UserError, match=r"metadata\.csv and metadata\.jsonl describe one folder"):
        task("folder", train=tmp_path).samples("train")
