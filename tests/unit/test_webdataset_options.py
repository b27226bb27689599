"""WebDataset shards: invalid samples are left out, splits are told apart, classes and targets have names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perceptune.data.build_task import data_keys
from perceptune.data.tasks.webdataset import split_shards
from perceptune.errors import UserError
from shelves import task as made
from tars import PAIR, Members, archive, put, read, row, task

pytestmark = pytest.mark.usefixtures("own_cache")


BROKEN: dict[str, Members] = {
    "no-medium": [("x.json", row())],
    "empty-medium": [("x.jpg", b""), ("x.json", row())],
    "no-targets": [("x.jpg", b"x")],
    "missing-key": [("x.jpg", b"x"), ("x.json", b'{"targets": "a"}')],
    "empty-target": [("x.jpg", b"x"), ("x.json", row(targets=" "))],
    "invalid-json": [("x.jpg", b"x"), ("x.json", b'{"prompt": "a')],
    "not-an-object": [("x.jpg", b"x"), ("x.json", b"[1]")],
    "not-utf8": [("x.jpg", b"x"), ("x.json", b"\xff\xfe")],
    "wrong-type": [("x.jpg", b"x"), ("x.json", row(targets={}))],
}


def shards_with(place: Path, broken: list[Members], whole: int = 40, name: str = "a.tar") -> Path:
    """Valid samples, among which broken ones lie."""
    members: Members = []
    for number in range(whole):
        members += [(f"{number}.jpg", b"x"), (f"{number}.json", row(page=number))]
        if number < len(broken):
            members += [(f"b{number}.{part.partition('.')[2]}", data) for part, data in broken[number]]
    put(f"{place}/{name}", archive(members))
    return place / name


@pytest.mark.parametrize("kind", BROKEN)
def test_an_invalid_sample_is_left_out_and_listed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shards_with(tmp_path, [BROKEN[kind]])
    own = task(file)
    samples = own.samples("train")
    assert [sample.id for sample in samples] == [str(number) for number in range(40)]
    assert [samples[index].meta["page"] for index in (0, 1, 39, -1)] == [0, 1, 39, 39]
    said = capsys.readouterr().err
    assert f"train: 1 of 41 samples are invalid and left out (`skip_invalid: 0.05`):\n  {file}, sample `b0`" in said
    errors = [str(error) for _, error in own.examine("train").rows if isinstance(error, UserError)]
    assert [getattr(error, "kind", "") for _, error in own.examine("train").rows if isinstance(error, UserError)] == [
        kind
    ]
    assert said.splitlines()[1].strip() == errors[0][:300] + "..." * (len(errors[0]) > 300)
    with pytest.raises(UserError, match=r"sample `b0`"):
        read(file, skip_invalid=0)


@pytest.mark.parametrize(
    ("budget", "n_broken", "allowed"),
    [(0.05, 2, 2), (0.05, 3, 2), (2, 2, 2), (1, 2, 1), (0.001, 1, 1), (0.001, 2, 1), (1.0, 9, 49)],
)  # fmt: skip
def test_the_budget_of_invalid_samples(
    budget: float, n_broken: int, allowed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shards_with(tmp_path, [*BROKEN.values()][:n_broken])
    if n_broken <= allowed:
        assert len(read(file, skip_invalid=budget)) == 40
        assert capsys.readouterr().err.count("\n  ") == min(n_broken, 5) + (n_broken > 5)
        return
    total = 40 + n_broken
    message = (
        rf"sample `b0`: .*; `skip_invalid: {budget}` lets {allowed} of {total} samples be left out, and there are more"
    )
    with pytest.raises(UserError, match=message):
        read(file, skip_invalid=budget)


def test_nothing_is_left_of_nothing_but_invalid_samples(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive(BROKEN["no-medium"]))
    with pytest.raises(UserError, match="sample `x`: it lacks a part `jpg`"):
        read(tmp_path / "a.tar", skip_invalid=1.0)
    for wrong in (-1, 1.5, "many"):
        with pytest.raises(UserError, match="skip_invalid"):
            made("webdataset", train=tmp_path / "a.tar", skip_invalid=wrong)
    shards_with(tmp_path, [[("x.jpg", b"x"), ("x.json", row(targets="no"))]], name="b.tar")
    with pytest.raises(UserError, match="`no` is none of the 2 `choices`"):
        read(tmp_path / "b.tar", choices=["a cat", "cat"])


def test_a_folder_of_shards_is_read_in_order(place: str) -> None:
    for name in ("b-10", "b-9", "a"):
        put(f"{place}/{name}.tar", archive([(f"{name}.jpg", b"x"), (f"{name}.json", row())]))
    put(f"{place}/._a.tar", b"x")
    put(f"{place}/notes.txt", b"x")
    for address in (place, f"{place}/"):
        assert [sample.id for sample in read(address)] == ["a", "b-10", "b-9"]
    assert [sample.id for sample in read(f"{place}/a.tar")] == ["a"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-0", "train-1", "test-0"], {"train": "train*.tar", "test": "test*.tar"}),
        (["set_Train_0", "set_val_0"], {"train": "*Train*.tar", "validation": "*val*.tar"}),
        (["train/0", "train/1", "val/0", "other/0"], {"train": "train", "validation": "val"}),
        (["test-0", "validation-0"], {"validation": "validation*.tar", "test": "test*.tar"}),
        (["train-0", "train-1"], {}),
        (["train-0", "test-0", "more-0"], {}),
        (["0", "1"], {}),
    ],
)
def test_shards_of_several_splits_are_told_apart(names: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        put(f"{tmp_path}/{name}.tar", archive([(f"{name}.jpg", b"x"), (f"{name}.json", row())]))
    wanted = {split: f"{tmp_path}/{pattern}" for split, pattern in expected.items()}
    assert split_shards(tmp_path) == wanted
    assert data_keys("webdataset", str(tmp_path)) == {"train": str(tmp_path)} | wanted
    own = made("webdataset", **data_keys("webdataset", str(tmp_path)))
    read_ids = [sample.id for split in own.splits if split in (wanted or ["train"]) for sample in own.samples(split)]
    assert sorted(read_ids) == sorted(name for name in names if not name.startswith("other"))
    if wanted:
        with pytest.raises(UserError, match=r"holds the splits|without a \.tar file"):
            read(tmp_path)


def test_doubtful_names_of_shards(tmp_path: Path) -> None:
    for name in ("train-0", "val-0", "dev-0"):
        put(f"{tmp_path}/{name}.tar", archive(PAIR))
    with pytest.raises(UserError, match=r"dev\*\.tar and .*val\*\.tar could both be the split `validation`"):
        split_shards(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is a folder without a \.tar file"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("parts", "options", "targets"),
    [
        ({"cls": b"1\n"}, {"class_names": ["cat", "dog"]}, ("dog",)),
        ({"cls": b"1", "txt": b"a text"}, {"class_names": ["cat", "dog"]}, ("dog",)),
        ({"cls": b"1", "txt": b"a text"}, {}, ("a text",)),
        ({"cls": b"1", "txt": b"a text"}, {"target_key": "cls"}, ("1",)),
        ({"cls": b"dog"}, {}, ("dog",)),
        ({"cls": b"dog"}, {"class_names": ["cat", "dog"]}, ("dog",)),
        ({"json": b'{"label": 0}'}, {"class_names": ["cat", "dog"], "target_key": "label"}, ("cat",)),
        ({"json": b'{"label": [0, 1]}'}, {"class_names": ["cat", "dog"], "target_key": "label"}, ("cat", "dog")),
        ({"json": b'{"a": "x", "b": ["y", "z"]}'}, {"target_key": ["a", "b"]}, ("x", "y", "z")),
        ({"label.txt": b"x"}, {"target_key": "label.txt"}, ("x",)),
    ],
)  # fmt: skip
def test_classes_and_named_targets(
    parts: dict[str, bytes], options: dict[str, Any], targets: tuple[str, ...], tmp_path: Path
) -> None:
    put(f"{tmp_path}/a.tar", archive([("1.jpg", b"x"), *((f"1.{part}", data) for part, data in parts.items())]))
    [sample] = read(tmp_path / "a.tar", prompt="what is it?", **options)
    assert (sample.prompt, sample.targets) == ("what is it?", targets)


@pytest.mark.parametrize("content", ["cat\ndog\n\n", '["cat", "dog"]', '{"1": "dog", "0": "cat"}'])
def test_names_of_classes_in_a_file(content: str, tmp_path: Path) -> None:
    names = tmp_path / ("names.txt" if content.startswith("cat") else "names.json")
    names.write_text(content)
    members = [("1.jpg", b"x"), ("1.cls", b"1"), ("2.jpg", b"x"), ("2.cls", b"2")]
    put(f"{tmp_path}/a.tar", archive(members))
    own = made("webdataset", train=tmp_path / "a.tar", prompt="?", class_names=names)
    assert [sample.targets for sample in own.samples("train")] == [("dog",)]
    with pytest.raises(UserError, match="sample `2`: `cls` is 2, and the classes are 0 to 1"):
        read(tmp_path / "a.tar", prompt="?", class_names=names, skip_invalid=0)
    names.write_text("[]" if names.suffix == ".json" else "")
    with pytest.raises(UserError, match=rf"{names.name}: not the names of classes"):
        read(tmp_path / "a.tar", prompt="?", class_names=names, skip_invalid=0)


def test_a_test_split_without_texts_and_ids_of_the_rows(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive([("1.jpg", b"x")]))
    [sample] = task(tmp_path / "a.tar", test=tmp_path / "a.tar", prompt="what?").samples("test")
    assert (sample.prompt, sample.targets) == ("what?", ())
    put(f"{tmp_path}/b.tar", archive([("1.jpg", b"x"), ("1.json", row(key=7))]))
    [sample] = read(tmp_path / "b.tar", id_key="key")
    assert (sample.id, sample.meta) == ("7", {})
    with pytest.raises(UserError, match="no key `kee`"):
        read(tmp_path / "b.tar", id_key="kee")
