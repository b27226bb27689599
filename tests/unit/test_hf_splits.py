"""Splits of local data sets of `datasets`, and what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfsets import PICTURE, rows, save, table
from perceptune.data.build_task import data_keys
from perceptune.data.hf_files import local_splits
from perceptune.errors import UserError
from shelves import media, put, task

datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
pytestmark = pytest.mark.usefixtures("own_cache", "offline_datasets")


@pytest.mark.parametrize(
    ("form", "names", "keys"),
    [
        ("dict", ["train", "test"], {"test": "test"}),
        ("dict", ["training", "val", "extra"], {"train": "training", "validation": "val"}),
        ("dict", ["test"], {"test": "test"}),
        ("dict", ["all"], {"train": "all"}),
        ("parquet", ["train", "test"], {"test": "test"}),
        ("parquet", ["test"], {"test": "test"}),
        ("folders", ["train", "validation"], {"validation": "validation"}),
        ("single", ["train"], {}),
        ("file", ["train"], {}),
    ],
)
def test_splits_of_a_local_set(form: str, names: list[str], keys: dict[str, str], tmp_path: Path) -> None:
    place, single = tmp_path / "set", rows().select([0])
    if form == "dict":
        datasets.DatasetDict(dict.fromkeys(names, single)).save_to_disk(place)
    elif form == "single":
        single.save_to_disk(place)
    elif form == "file":
        place = save(tmp_path, "parquet", single)
    for name in names if form in ("parquet", "folders") else ():
        inner = f"{name}/0.parquet" if form == "folders" else f"data/{name}-00000-of-00001.parquet"
        table(place / inner, {"image": [PICTURE]})
    assert sorted(local_splits(place)) == sorted(names)
    assert data_keys("hf-dataset", str(place)) == {"path": str(place), **keys}
    own = task("hf-dataset", **data_keys("hf-dataset", str(place)))
    for split in keys:
        assert len(own.samples(split)) == 1
    if "train" not in names and "train" not in keys:
        with pytest.raises(UserError, match=r"no split `train`.*`test`"):
            own.samples("train")
    if len(names) == 1:
        alone = task("hf-dataset", **data_keys("hf-dataset", str(place), "test"))
        assert len(alone.samples("test")) == 1
        assert alone.read_from("test") == alone.read_from("train")


def test_media_beside_tables_are_not_the_data_set(tmp_path: Path) -> None:
    media(tmp_path, *(f"train/{n}.png" for n in range(5)))
    (tmp_path / "test").mkdir()
    for split in ("train", "test"):
        table(tmp_path / split / "rows.parquet", {"image": ["a.png"], "targets": [split]})
    assert sorted(local_splits(tmp_path)) == ["test", "train"]
    own = task("hf-dataset", **data_keys("hf-dataset", str(tmp_path)))
    for split in own.splits:
        (sample,) = own.samples(split)
        assert (sample.targets, sample.media) == ((split,), {"image": tmp_path / split / "a.png"})


def test_names_of_classes_in_a_readme(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("plain")  # the library takes `test_` in a path for a split
    label = {"name": "label", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}}
    kinds = [{"name": "image", "dtype": "string"}, {"name": "prompt", "dtype": "string"}, label]
    put(place / "README.md", f"---\ndataset_info: {json.dumps({'features': kinds})}\n---\n")
    table(place / "data/train-0.parquet", {"image": ["a.png"], "label": [1], "targets": None})
    (sample,) = task("hf-dataset", path=place).samples("train")
    assert sample.targets == ("dog",)


def test_parts_of_saved_splits(tmp_path: Path) -> None:
    for form in ("dict", "single"):
        own = task("hf-dataset", path=save(tmp_path / form, form, rows()), train="train[:50%]+train[-1:]")
        assert [sample.prompt for sample in own.samples("train")] == ["what é 0?", "what é 1?", "what é 3?"]


def test_what_is_no_local_set_has_no_splits(tmp_path: Path) -> None:
    media(tmp_path, "red/1.jpg", "notes.txt")
    assert local_splits(tmp_path) == local_splits(tmp_path / "notes.txt") == local_splits("somebody/flowers") == []
    datasets.DatasetDict({"val": rows(), "dev": rows()}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match="`val` and `dev` could both be the split `validation`"):
        data_keys("hf-dataset", str(tmp_path / "two"))
