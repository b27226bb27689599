"""Closed sets of answers: their choices in every sample, and what is outside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tars
from perceptune.errors import UserError
from shelves import media, put, task

pytestmark = pytest.mark.usefixtures("own_cache")

Answers = dict[str, str]  # file -> answer


def in_jsonl(folder: Path, answers: Answers) -> tuple[str, Path]:
    rows = [{"image": file, "prompt": "what?", "targets": answer} for file, answer in answers.items()]
    return "jsonl", put(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def in_csv(folder: Path, answers: Answers) -> tuple[str, Path]:
    rows = [f"{file},what?,{answer}\n" for file, answer in answers.items()]
    return "csv", put(folder / "a.csv", "".join(["image,prompt,targets\n", *rows]))


def in_folders(folder: Path, answers: Answers) -> tuple[str, Path]:
    media(folder / "media", *(f"{answer}/{file}" for file, answer in answers.items()))
    return "folder", folder / "media"


def in_messages(folder: Path, answers: Answers) -> tuple[str, Path]:
    rows = [
        {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}], "images": [file]}
        for file, answer in answers.items()
    ]
    return "messages", put(folder / "a.json", rows)


def in_shards(folder: Path, answers: Answers) -> tuple[str, Path]:
    members = [
        member
        for file, answer in answers.items()
        for member in ((file, b"x"), (f"{Path(file).stem}.json", tars.row(targets=answer)))
    ]
    tars.put(str(folder / "a.tar"), tars.archive(members))
    return "webdataset", folder / "a.tar"


def in_a_data_set(folder: Path, answers: Answers) -> tuple[str, Path]:
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    names = [*dict.fromkeys(answers.values())]
    features = {"image": datasets.Value("string"), "prompt": datasets.Value("string"),
                "label": datasets.ClassLabel(names=names)}  # fmt: skip
    columns = {"image": [str(folder / file) for file in answers], "prompt": ["what?"] * len(answers),
               "label": [*map(names.index, answers.values())]}  # fmt: skip
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(folder / "saved")
    return "hf-dataset", folder / "saved"


FORMS = [in_jsonl, in_csv, in_folders, in_messages, in_shards, in_a_data_set]


@pytest.mark.parametrize("write", FORMS)
def test_every_reader_gives_the_choices(write: Callable[..., tuple[str, Path]], tmp_path: Path) -> None:
    media(tmp_path, "1.jpg", "2.jpg")
    name, place = write(tmp_path, {"1.jpg": "cat", "2.jpg": "dog"})
    key = "path" if name == "hf-dataset" else "train"
    more: dict[str, Any] = {"prompt": "what?"} if name == "folder" else {"image_key": "image"} if key == "path" else {}
    samples = task(name, **{key: place}, **more, choices=["dog", "cat"]).samples("train")
    assert [(sample.targets, sample.meta["choices"]) for sample in samples] == [
        (("cat",), ["dog", "cat"]), (("dog",), ["dog", "cat"]),
    ]  # fmt: skip
    assert all("choices" not in sample.meta for sample in task(name, **{key: place}, **more).samples("train"))
    with pytest.raises(UserError, match=r"`cat` is none of the 2 `choices`; did you mean `cats`\?"):
        task(name, **{key: place}, **more, choices=["dog", "cats"]).samples("train")


def one(folder: Path, choices: list[str], /, split: str = "train", **row: Any) -> Any:
    put(folder / "a.jsonl", json.dumps({"image": None, "prompt": "what?", **row}) + "\n")
    given = dict.fromkeys(["train", split], folder / "a.jsonl")
    lowercase = row.get("lowercase", False)
    return task("jsonl", **given, choices=choices, lowercase=lowercase).samples(split)[0]


def test_targets_are_compared_as_answers_are(tmp_path: Path) -> None:
    assert one(tmp_path, ["a cat", "dog"], targets=["dog.", " a cat "]).targets == ("dog.", " a cat ")
    assert one(tmp_path, ["Cat", "dog"], targets="cat", lowercase=True).targets == ("cat",)
    with pytest.raises(UserError, match=r"line 1: `cat` is none of the 2 `choices`; did you mean `Cat`\?"):
        one(tmp_path, ["Cat", "dog"], targets=["dog", "cat"])


def test_a_row_may_have_its_own_choices(tmp_path: Path) -> None:
    own = one(tmp_path, ["cat", "dog"], targets="red", choices=["red", "blue"])
    assert own.meta["choices"] == ["red", "blue"]
    assert one(tmp_path, ["cat", "dog"], targets="dog", choices=None).meta["choices"] == ["cat", "dog"]
    assert one(tmp_path, ["cat", "dog"], targets="red", choices="['red', 'blue']").meta["choices"] == ["red", "blue"]
    with pytest.raises(UserError, match=r"line 1: `cat` is none of the 2 `choices`"):
        one(tmp_path, ["cat", "dog"], targets="cat", choices=["red", "blue"])
    with pytest.raises(UserError, match=r"line 1: `choices` is a number, not a list of texts"):
        one(tmp_path, ["cat", "dog"], targets="cat", choices=3)


def test_a_test_split_may_lack_targets(tmp_path: Path) -> None:
    assert one(tmp_path, ["cat", "dog"], split="test").meta["choices"] == ["cat", "dog"]


def test_the_nearest_of_many(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`class-0071` is none of the 100 `choices`; the nearest is `class-071`"):
        one(tmp_path, [f"class-{n:03d}" for n in range(100)], targets="class-0071")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["cat"], "`choices`: `choices` needs at least two texts, it has 1"),
        ([], "needs at least two texts, it has 0"),
        ("cat", r"a list of texts, such as \[cat, dog\]"),
        (["cat", " "], "holds an empty text"),
        (["cat", "cat"], "`cat` and `cat` are the same answer"),
        (["cat", "cat."], "`cat` and `cat.` are the same answer"),
        (["cat", "..."], r"`\.\.\.` has no answer in it"),
        ([True, False], r"holds a boolean \(True\), not a text: put it in quotes"),
        ([0, 1], r"holds a number \(0\), not a text: put it in quotes"),
    ],
)
def test_wrong_sets_are_refused(choices: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        task("jsonl", train=tmp_path / "a.jsonl", choices=choices)


def test_captions_are_no_closed_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`choices` is a closed set of answers, and `metric: CIDEr` is for captions"):
        task("jsonl", train=tmp_path / "a.jsonl", choices=["a", "b"], metric="CIDEr")
