"""What a path is taken for: the line about it, and one error for what cannot be settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forms
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.recognition.task_keys import recognize_task
from perceptune.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", forms.FORMS)
def test_recognised_data_is_read_by_its_reader(name: str, tmp_path: Path) -> None:
    case = forms.FORMS[name](tmp_path / "data")
    found = recognize_task(case.place, words=[word for word in case.words if word.startswith("task.")])
    assert found.doubt is None
    task = task_of(NamedPart(**found.task))
    assert len(task.samples(task.splits[0])) <= found.found.samples


def test_validation_data_of_a_published_set_is_joined(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    case = forms.FORMS["coco_captions"](folder)
    names = [f"{number:012d}.jpg" for number in range(forms.COUNT)]
    other = forms.write(folder / "annotations/captions_val2017.json", json.dumps(forms.coco(names)))
    task = task_of(NamedPart(**recognize_task(case.place, validation=str(other)).task))
    assert task.splits == ("train", "validation")
    media = [next(iter(task.samples(split)[0].media.values())) for split in task.splits]
    assert [Path(str(medium)).parent.name for medium in media] == ["train2017", "val2017"]
    rows = forms.FORMS["json_lines_of_captions"](tmp_path / "rows")
    with pytest.raises(UserError, match=r"--validation .*: JSON lines \(jsonl\), but --data is COCO captions"):
        recognize_task(case.place, validation=rows.place)


def beside_each_other(folder: Path) -> Path:
    """Tables of two splits, whose media have the same names in folders of their own."""
    for number, split in enumerate(("train", "val")):
        for name in "ab":
            forms.write(folder / split / f"{name}.png", forms.picture(number))
        rows = [["image", "caption"], *([f"{name}.png", f"{name} of {split}"] for name in "ab")]
        forms.write(folder / f"{split}.csv", forms.table(rows))
    return folder


@pytest.mark.parametrize("is_folder", [True, False])
def test_each_split_has_its_own_media(is_folder: bool, tmp_path: Path) -> None:
    folder = beside_each_other(tmp_path / "data")
    place, other = (str(folder), None) if is_folder else (str(folder / "train.csv"), str(folder / "val.csv"))
    found = recognize_task(place, validation=other)
    assert f"media in {folder}/train, {folder}/val (--media)" in found.line
    task = task_of(NamedPart(**found.task))
    seen = {split: {sample.media["image"].parent.name for sample in task.samples(split)} for split in task.splits}
    assert seen == {"train": {"train"}, "validation": {"val"}}
    assert found.splits == ("validation",)


def test_validation_data_of_another_form_or_folder_is_refused(tmp_path: Path) -> None:
    rows = beside_each_other(tmp_path / "rows")
    lines = forms.FORMS["json_lines_of_captions"](tmp_path / "lines").place
    with pytest.raises(UserError, match=r"--validation .*rows.ndjson: JSON lines \(jsonl\), but --data is a CSV table"):
        recognize_task(str(rows / "train.csv"), validation=lines)
    table = forms.FORMS["parquet_with_bytes"](tmp_path / "table").place
    with pytest.raises(UserError, match=r"--validation .*put its files into one folder, as train.parquet and"):
        recognize_task(table, validation=table)


def test_annotations_of_another_folder_are_not_those_of_the_first(tmp_path: Path) -> None:
    places = []
    for part, number in (("one", 3), ("other", 2)):
        names = forms.pictures(tmp_path / part, "{n}.png")
        places.append(forms.write(tmp_path / part / "captions.json", json.dumps(forms.coco(names[:number]))))
    task = task_of(NamedPart(**recognize_task(str(places[0]), validation=str(places[1])).task))
    assert {split: len(task.samples(split)) for split in task.splits} == {"train": 6, "validation": 2}


def test_a_folder_of_media_is_never_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    forms.FORMS["image_folder"](folder)
    (folder / "part").rename(tmp_path / "part")
    task = task_of(NamedPart(**recognize_task(str(folder), media=str(tmp_path)).task))
    assert len(task.samples("train")) == forms.COUNT
    with pytest.raises(UserError, match=r"--media x: WebDataset shards .*hold their media themselves"):
        recognize_task(forms.FORMS["tar"](tmp_path / "tar").place, media="x")


def saved(folder: Path, *splits: str) -> str:
    for split in splits:
        columns = {"image": [forms.picture(n) for n in range(2)], "text": ["a cup", "a bowl"]}
        forms.parquet(folder / f"{split}-00000-of-00001.parquet", columns)
    return str(folder)


def test_nothing_is_trained_on_the_split_that_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"splits `validation`, `test`, none of them called `train`.*task.train="):
        recognize_task(saved(tmp_path / "none", "validation", "test"))
    found = recognize_task(saved(tmp_path / "one", "test"))
    assert (found.task["train"], found.splits) == ("test", ())


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_classes_stay_classes_with_a_metric_of_them(metric: str, tmp_path: Path) -> None:
    found = recognize_task(forms.FORMS["classes"](tmp_path / "data").place, words=[f"task.metric={metric}"])
    assert (found.learned.kind, found.learned.template, found.task["metric"]) == ("classes", None, metric)
    assert task_of(NamedPart(**found.task)).metric == metric


def test_given_choices_are_the_classes(tmp_path: Path) -> None:
    for number in range(3):
        forms.write(tmp_path / f"data/cat/{number}.png", forms.picture(number))
    found = recognize_task(str(tmp_path / "data"), settings={"choices": ["cat", "dog"]})
    assert (found.doubt, found.learned.kind, found.task["choices"]) == (None, "classes", ["cat", "dog"])
    assert "2 classes" in found.line


def test_a_metric_of_a_type_of_answers_keeps_the_questions(tmp_path: Path) -> None:
    rows = [{"image": name, "prompt": f"{name}?", "targets": f"x {name}", "answer_type": "other"}
            for name in forms.pictures(tmp_path / "data")]  # fmt: skip
    place = str(forms.write(tmp_path / "data/rows.jsonl", forms.lines(rows)))
    assert recognize_task(place, words=["task.metric=accuracy_other"]).learned.kind == "questions"


def test_media_near_a_file_go_before_those_of_other_data(tmp_path: Path) -> None:
    place = forms.FORMS["csv_of_labels"](tmp_path / "data").place
    forms.pictures(tmp_path / "other")
    assert recognize_task(place).task["media"] == str(tmp_path / "data/imgs")
