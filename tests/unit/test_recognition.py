"""What a path is taken for: the line about it, and one error for what cannot be settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forms
from forms import COUNT, caption, color, lines, picture, pictures, sound, table, write
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.recognition.kinds import Summary
from perceptune.data.recognition.task_keys import recognize_task
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import validate_dataset
from perceptune.types import Sample

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


def told(place: Path) -> str:
    """The line about data that is clean, and read as it was recognised."""
    found = recognize_task(str(place))
    assert found.doubt is None
    assert validate_dataset(str(place)).clean
    task = task_of(NamedPart(**found.task))
    assert tuple(task.splits) == tuple(found.form.splits)
    return found.line


def rows(names: list[str], columns: str = "image,caption") -> bytes:
    return table([columns.split(","), *([name, caption(n)] for n, name in enumerate(names))])


# Folders as they are unpacked or downloaded


def test_an_unpacked_archive_is_its_only_folder(tmp_path: Path) -> None:
    for n in range(COUNT):
        write(tmp_path / f"data/archive/{('train', 'test')[n % 4 == 3]}/{color(n)}/{n}.png", picture(n))
    write(tmp_path / "data/README.md", "about")
    line = told(tmp_path / "data")
    assert "with the splits `train`, `test`" in line
    assert "18 samples" in line
    assert f"all of it lies in {tmp_path / 'data/archive'}" in line


def test_a_table_in_a_folder_of_tables_is_read(tmp_path: Path) -> None:
    for n in range(COUNT):
        write(tmp_path / f"audio/{n}.wav", sound(n))
    listed = [["filename", "category"], *([f"{n}.wav", color(n)] for n in range(COUNT))]
    write(tmp_path / "meta/all.csv", table(listed))
    assert "a CSV table, all.csv (--task csv): 24 samples with 24 audio files, 3 classes" in told(tmp_path)


def test_the_files_of_a_competition_are_those_with_answers(tmp_path: Path) -> None:
    for n in range(COUNT):
        write(tmp_path / f"{('train', 'test')[n > 19]}/{n}.jpg", picture(n, "JPEG"))
    write(tmp_path / "train.csv", table([["image_id", "label"], *([f"{n}.jpg", color(n)] for n in range(20))]))
    write(tmp_path / "test.csv", table([["image_id"], *([f"{n}.jpg"] for n in range(20, COUNT))]))
    write(tmp_path / "sample_submission.csv", table([["image_id", "label"], ["20.jpg", "red"]]))
    line = told(tmp_path)
    assert "20 samples with 20 images, 3 classes" in line
    assert "test.csv is left out, as it has no answers" in line


def test_a_split_without_metadata_is_left_out(tmp_path: Path) -> None:
    for n in range(COUNT):
        write(tmp_path / f"{('train', 'test')[n > 19]}/{n}.png", picture(n))
    write(tmp_path / "train/metadata.csv", rows([f"{n}.png" for n in range(20)], "file_name,text"))
    assert f"{tmp_path / 'test'} is left out" in told(tmp_path)


def test_cocos_captions_are_chosen_among_its_annotations(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        values = forms.coco(pictures(tmp_path / split))
        write(tmp_path / f"annotations/captions_{split}.json", json.dumps(values))
        for note in values["annotations"]:
            del note["caption"]
        for kind in ("instances", "person_keypoints"):
            write(tmp_path / f"annotations/{kind}_{split}.json", json.dumps(values))
    assert "COCO captions" in told(tmp_path)


def test_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "train")
    pictures(tmp_path / "test1")
    with pytest.raises(UserError, match="48 images without any text to learn: put each into a folder named after its"):
        recognize_task(str(tmp_path))


def test_files_of_rows_are_not_passed_over_for_their_folders_of_media(tmp_path: Path) -> None:
    for part in ("indoor", "outdoor"):
        write(tmp_path / f"{part}.csv", rows([f"{part}/{name}" for name in pictures(tmp_path / part)]))
    with pytest.raises(UserError, match=r"can be read in several ways.*indoor\.csv: --data .*; outdoor\.csv: --data "):
        recognize_task(str(tmp_path))


def test_one_readable_table_is_chosen_among_others(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", rows(pictures(tmp_path / "photos")))
    write(tmp_path / "classes.json", json.dumps({"red": 0}))
    assert "a CSV table, a.csv" in told(tmp_path)


# Columns


def test_a_column_of_splits_is_told(tmp_path: Path) -> None:
    values = [["image", "caption", "Split"]]
    values += [[name, caption(n), ("train", "val")[n % 2]] for n, name in enumerate(pictures(tmp_path))]
    line = told(write(tmp_path / "rows.csv", table(values)))
    assert "column `Split` (`train`, `val`) is not heeded: give each split a file of its own (--validation)" in line


def test_rows_whose_ids_repeat_are_numbered(tmp_path: Path) -> None:
    values = [
        ["id", "image", "caption"],
        *([str(n // 2), name, caption(n)] for n, name in enumerate(pictures(tmp_path))),
    ]
    assert "`id` repeats (task.number_rows)" in told(write(tmp_path / "rows.csv", table(values)))


def test_rows_beside_other_entries_of_a_document_are_found(tmp_path: Path) -> None:
    listed = [{"image": name, "text": caption(n)} for n, name in enumerate(pictures(tmp_path))]
    file = write(tmp_path / "rows.json", json.dumps({"info": {"year": 1}, "annotations": listed}))
    assert "rows at `annotations`" in told(file)


def test_media_of_two_kinds_are_counted_together(tmp_path: Path) -> None:
    for n in range(COUNT):
        write(tmp_path / f"{n}.wav", sound(n))
    values = [{"image": name, "audio": f"{n}.wav", "caption": caption(n)} for n, name in enumerate(pictures(tmp_path))]
    assert "24 media (image, audio)" in told(write(tmp_path / "rows.jsonl", lines(values)))


def test_the_length_of_audio_is_that_of_most_files_in_any_order() -> None:
    found = Summary()
    for number in range(1000):  # sorted by class, as folders are
        found.add(Sample(str(number), {"audio": Path(f"{number // 100}/{number}.wav")}, ""))
    kept = found.probed["audio"].values()
    assert len(kept) == 64
    assert len({Path(str(medium)).parent for medium in kept}) == 10


def test_a_name_with_braces_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = table([["image", "caption"], *([f"{number}.png", caption(number)] for number in range(COUNT))])
    place = write(tmp_path / "rows {1}.tar.csv", rows)
    assert recognize_task(str(place)).form.reader == "csv"


def test_shards_of_several_splits_are_told_apart(tmp_path: Path) -> None:
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        write(tmp_path / f"{split}-0.tar", forms.shard(numbers))
    found = recognize_task(str(tmp_path))
    assert "with the splits `train`, `validation`" in found.line
    task = task_of(NamedPart(**found.task))
    assert [len(task.samples(split)) for split in task.splits] == [4, 2]
