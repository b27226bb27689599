"""Columns of other names, and values whose meaning is plain, in every reader of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perceptune.data.tasks.base import to_row
from perceptune.errors import UserError
from shelves import media, put, task, there_and_back

pytestmark = pytest.mark.usefixtures("own_cache")
ROW = {"img": "1.jpg", "question": "what?", "answer": "a cat", "name": "x", "page": 3}
NAMES = {"image_key": "img", "prompt_key": "question", "target_key": "answer", "id_key": "name"}


def lines(folder: Path, *rows: dict[str, Any], **options: Any) -> Any:
    media(folder, "1.jpg", "2.wav")
    text = "\n".join(json.dumps(row) for row in rows)
    return task("jsonl", train=put(folder / "rows.jsonl", text), **options)


def test_keys_of_other_names(tmp_path: Path) -> None:
    [sample] = samples = lines(tmp_path, ROW, **NAMES).samples("train")
    assert sample.media == {"image": tmp_path / "1.jpg"}
    assert (sample.id, sample.prompt, sample.targets) == ("x", "what?", ("a cat",))
    assert sample.meta == {"page": 3}
    there_and_back(samples, tmp_path)


def test_a_column_with_a_usual_name_that_was_not_chosen_is_meta(tmp_path: Path) -> None:
    row = {**ROW, "image": "no.jpg", "prompt": "other?", "targets": ["other"], "id": 7}
    [sample] = samples = lines(tmp_path, row, **NAMES).samples("train")
    assert (sample.media["image"], sample.prompt, sample.targets) == (tmp_path / "1.jpg", "what?", ("a cat",))
    assert sample.meta == {"page": 3, "image": "no.jpg", "prompt": "other?", "targets": ["other"], "id": 7}
    row = to_row(samples[0], tmp_path)
    assert (row["image"], row["prompt"], row["targets"], row["id"]) == ("1.jpg", "what?", ["a cat"], "x")


def test_columns_of_a_table_that_were_not_chosen_are_meta(tmp_path: Path) -> None:
    media(tmp_path, "1.jpg")
    path = put(tmp_path / "rows.csv", "img,question,answer,image\n1.jpg,a?,b,c\n")
    names = {"image_key": "img", "prompt_key": "question", "target_key": "answer"}
    [sample] = task("csv", train=path, **names).samples("train")
    assert (sample.media["image"], sample.meta) == (tmp_path / "1.jpg", {"image": "c"})


def test_targets_in_several_keys(tmp_path: Path) -> None:
    rows = [{"image": "1.jpg", "a": "one", "b": ["two", "three"]}, {"image": "1.jpg", "a": None, "b": 4}]
    options = {"target_key": ["a", "b"], "metric": "CIDEr", "group_rows": False}
    first, second = lines(tmp_path, *rows, **options).samples("train")
    assert (first.targets, second.targets, first.meta) == (("one", "two", "three"), ("4",), {})
    for row, message in [
        ({"image": "1.jpg", "a": "one"}, r"line 1: no key `b`.*given by `target_key`"),
        ({"image": "1.jpg", "a": None, "b": None}, "line 1: `a`, `b` are all empty"),
    ]:
        with pytest.raises(UserError, match=message):
            lines(tmp_path, row, target_key=["a", "b"], metric="CIDEr").samples("train")


def test_a_table_with_several_columns_of_targets(tmp_path: Path) -> None:
    media(tmp_path, "1.jpg")
    path = put(tmp_path / "rows.csv", "image,a,b\n1.jpg,x|y,\n,,z\n")
    options = {"target_key": ["a", "b"], "prompt": "?"}
    assert [s.targets for s in task("csv", train=path, **options).samples("train")] == [("x", "y"), ("z",)]
    put(path, "image,a,b\n1.jpg,,\n")
    with pytest.raises(UserError, match=r"rows\.csv, line 2: `a`, `b` are all empty"):
        task("csv", train=path, **options).samples("train")
    [sample] = task("csv", train=path, test=path, **options).samples("test")
    assert sample.targets == ()


def test_one_prompt_for_rows_without_any_and_a_folder_of_media(tmp_path: Path) -> None:
    media(tmp_path, "media/1.jpg")
    rows = [
        {"image": "1.jpg", "targets": "a"}, {"image": "1.jpg", "prompt": None, "targets": "a"},
        {"image": "1.jpg", "prompt": "", "targets": "a"}, {"image": "1.jpg", "prompt": "own?", "targets": "a"},
    ]  # fmt: skip
    samples = lines(tmp_path, *rows, prompt="all?", media=tmp_path / "media").samples("train")
    assert [sample.prompt for sample in samples] == ["all?"] * 3 + ["own?"]
    assert samples[0].media == {"image": tmp_path / "media/1.jpg"}
    table = put(tmp_path / "rows.csv", "image,prompt,targets\n1.jpg,,a\n1.jpg,own?,a\n")
    samples = task("csv", train=table, prompt="all?", media=tmp_path / "media").samples("train")
    assert [sample.prompt for sample in samples] == ["all?", "own?"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no key `image` or `audio` or `video`.*`img`.*; a column of another name is given by `image_key`"),
        ({**NAMES, "image_key": "imgg"}, "no key `imgg`.*but `img`; did you mean `imgg`"),
        ({**NAMES, "prompt_key": "q"}, "no key `q`; .*given by `prompt_key`; `prompt` is one for all rows"),
        ({**NAMES, "target_key": "anser"}, "no key `anser`, but `answer`"),
        ({**NAMES, "id_key": "question", "prompt_key": "page"}, "`page` is a number, not a string"),
    ],
)
def test_errors_name_the_columns_of_the_file(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 1: {message}"):
        lines(tmp_path, ROW, **options).samples("train")


def test_a_missing_medium_is_named_by_its_column(tmp_path: Path) -> None:
    for value in ("2.jpg", ["2.jpg"]):
        with pytest.raises(UserError, match=r"rows\.jsonl, line 1: cannot read `img` 2\.jpg: "):
            lines(tmp_path, {**ROW, "img": value}, **NAMES).samples("train")
    with pytest.raises(UserError, match=r"cannot read `images` 2\.jpg: "):
        lines(tmp_path, {"images": ["2.jpg"], "prompt": "a?", "targets": "b"}).samples("train")


MEDIA: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"image": ["1.jpg"]}, {"image": "1.jpg"}),
    ({"images": ["1.jpg"]}, {"image": "1.jpg"}),
    ({"images": "1.jpg"}, {"image": "1.jpg"}),
    ({"images": ["1.jpg"], "audios": ["2.wav"]}, {"image": "1.jpg", "audio": "2.wav"}),
    ({"image": "1.jpg", "audio": ["2.wav"]}, {"image": "1.jpg", "audio": "2.wav"}),
    ({"images": [], "audios": None}, {}),
    ({"image": []}, {}),
]


@pytest.mark.parametrize(("given", "wanted"), MEDIA)
def test_a_list_of_one_medium_is_that_medium(given: dict[str, Any], wanted: dict[str, str], tmp_path: Path) -> None:
    [sample] = samples = lines(tmp_path, {**given, "prompt": "a?", "targets": "b"}).samples("train")
    assert sample.media == {key: tmp_path / name for key, name in wanted.items()}
    assert sample.meta == {}
    there_and_back(samples, tmp_path)


def test_images_beside_an_image_stay_meta(tmp_path: Path) -> None:
    [sample] = lines(tmp_path, {"image": "1.jpg", "images": ["a", "b"], "prompt": "a?", "targets": "b"}).samples(
        "train"
    )
    assert sample.meta == {"images": ["a", "b"]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(3, ("3",)), (2.5, ("2.5",)), (-1, ("-1",)), ([3, "three"], ("3", "three")), ("3", ("3",)), ("true", ("true",))],
)
def test_a_number_is_a_target(given: Any, wanted: tuple[str, ...], tmp_path: Path) -> None:
    reader = lines(tmp_path, {"image": "1.jpg", "prompt": "a?", "targets": given})
    assert reader.samples("train")[0].targets == wanted
    assert reader.form("train") == [], "it is no list written as text"


def test_metadata_of_a_folder_reads_them_too(tmp_path: Path) -> None:
    media(tmp_path, "1.jpg")
    path = put(tmp_path / "metadata.jsonl", {"file_name": ["1.jpg"], "text": 3})
    [sample] = task("folder", train=tmp_path, prompt="?").samples("train")
    assert (sample.media, sample.targets) == ({"image": tmp_path / "1.jpg"}, ("3",))
    put(path, {"file_name": ["1.jpg", "2.jpg"], "text": 3})
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 1: cannot read `image` 2\.jpg"):
        task("folder", train=tmp_path, prompt="?").samples("train")
