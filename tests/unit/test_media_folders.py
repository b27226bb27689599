"""Folders of media: what is read, what is passed over and said, and what is no class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import tars
from perceptune.data.build_task import data_keys
from perceptune.data.media.suffixes import MEDIA, PassedOver, modality_of, walk
from perceptune.data.splits import split_folders
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import CheckOptions, validate_dataset
from shelves import media, put, task

pytestmark = pytest.mark.usefixtures("own_cache")
JUNK = (
    *("red/._1.jpg", "red/.DS_Store", "red/Thumbs.db", "__MACOSX/red/._1.jpg", ".ipynb_checkpoints/1-checkpoint.jpg"),
    *("@eaDir/red/1.jpg", "$RECYCLE.BIN/1.jpg", "blue/.cache/2.jpg", "blue/desktop.ini"),
)


def targets(folder: Path, **options: object) -> list[tuple[str, ...]]:
    samples = task("folder", train=folder, prompt="which?", **options).samples("train")
    return [(sample.id, *sample.media, *sample.targets) for sample in samples]


def test_hidden_and_system_files_are_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media(tmp_path, "red/1.jpg", "blue/2.jpg", "blue/notes.txt", "blue/more.txt", "blue/LICENCE", *JUNK)
    assert targets(tmp_path) == [("blue/2.jpg", "image", "blue"), ("red/1.jpg", "image", "red")]
    said = "2 .txt, 1 without a suffix, 4 hidden or system files, 5 hidden or system folders"
    assert capsys.readouterr().err == f"train: passed over: {said}\n"


def test_hidden_metadata_is_not_read(tmp_path: Path) -> None:
    media(tmp_path, "1.jpg", ".trash/2.jpg")
    put(tmp_path / "metadata.jsonl", {"file_name": "1.jpg", "text": "a"})
    put(tmp_path / ".trash/metadata.jsonl", {"file_name": "2.jpg", "text": "b"})
    assert [row[0] for row in targets(tmp_path)] == ["train-000001"]


@pytest.mark.parametrize("suffix", [suffix for some in MEDIA.values() for suffix in some])
def test_every_suffix_is_read_everywhere(tmp_path: Path, suffix: str) -> None:
    modality = modality_of(f"x.{suffix.upper()}")
    media(tmp_path, f"red/1.{suffix}", f"blue/2.{suffix.upper()}")
    if suffix == "gif":
        return
    assert {row[1] for row in targets(tmp_path)} == {modality}
    (tmp_path / "a.tar").write_bytes(tars.archive([(f"1.{suffix}", b"x"), ("1.json", tars.row())]))
    (sample,) = task("webdataset", train=tmp_path / "a.tar").samples("train")
    assert [*sample.media] == [modality]


def test_a_gif_is_what_the_others_are(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    for name, more in (("still", []), ("moving", frames[1:])):
        (tmp_path / name / "red").mkdir(parents=True)
        frames[0].save(tmp_path / name / "red" / "1.gif", save_all=True, append_images=more)
    assert targets(tmp_path / "still")[0][1] == "image"
    assert targets(tmp_path / "moving")[0][1] == "video"
    assert targets(tmp_path / "moving", modality="image")[0][1] == "image"
    media(tmp_path, "moving/red/2.jpg")
    assert {row[1] for row in targets(tmp_path / "moving")} == {"image"}
    assert modality_of("1.gif", ["image"]) == "image"
    assert modality_of("1.gif", ["audio"]) is None


def test_splits_are_no_classes(tmp_path: Path) -> None:
    media(
        tmp_path,
        "a/train/red/1.jpg",
        "a/test/red/1.jpg",
        "b/train/1.jpg",
        "b/val/1.jpg",
        "c/train/1.jpg",
        "c/bus/1.jpg",
    )
    for name in "ab":
        with pytest.raises(
            UserError,
            match=r"holds the splits `train`, `.*, not classes: give one of them as `train`, such as .*/train",
        ):
            targets(tmp_path / name)
    assert [row[2] for row in targets(tmp_path / "c")] == ["bus", "train"]
    for split in ("train", "test"):
        media(tmp_path, f"d/{split}/1.jpg")
        put(tmp_path / "d" / split / "metadata.jsonl", {"file_name": "1.jpg", "text": "a"})
    with pytest.raises(UserError, match=r"holds the splits `train`, `test`"):
        targets(tmp_path / "d")
    assert len(targets(tmp_path / "d" / "train")) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["Train/red/1.jpg", "VAL/red/1.jpg", "testing/red/1.wav"], "Train VAL testing"),
        (["train/1.jpg", "dev/1.jpg"], "train dev"),
        (["training/red/1.jpg"], "training"),
        (["train/red/1.jpg", "test/red/1.jpg", "docs/1.jpg", "__MACOSX/1.jpg"], "train test"),
        (["train/metadata.csv", "train/1.jpg", "test/metadata.csv", "bus/1.jpg"], "train test"),
        (["train/red/1.jpg", "test/readme.md", "notes.txt"], "train"),
        (["train/red/1.jpg", "evaluation/red/1.jpg"], "train evaluation"),
        (["test/red/1.jpg"], "test"),
        (["train/1.jpg", "bus/1.jpg", "car/1.jpg"], ""),
        (["train/1.jpg", "test/1.jpg", "bus/1.jpg"], ""),
        (["train/1.jpg"], ""),
        (["train/red/1.jpg", "bus/1.jpg"], ""),
        (["metadata.jsonl", "train/1.jpg", "test/1.jpg"], ""),
        (["red/1.jpg"], ""),
        ([".train/red/1.jpg", ".test/red/1.jpg"], ""),
    ],
)
def test_folders_of_splits_are_told_from_classes(files: list[str], expected: str, tmp_path: Path) -> None:
    media(tmp_path, *files)
    found = split_folders(tmp_path)
    assert " ".join(folder.name for folder in found.values()) == expected
    keys = data_keys("folder", str(tmp_path))
    if expected:
        assert keys == {"train": str(tmp_path / "train")} | {split: str(folder) for split, folder in found.items()}
    else:
        assert keys == {"train": str(tmp_path)}


def test_splits_of_the_data_are_read_and_doubtful_ones_are_named(tmp_path: Path) -> None:
    media(tmp_path, "a/train/red/1.jpg", "a/train/blue/2.jpg", "a/val/red/3.jpg", "a/test/blue/4.jpg")
    media(tmp_path, "b/train/red/1.jpg", "b/val/red/1.jpg", "b/dev/red/1.jpg", "c/test/red/1.jpg")
    own = task("folder", **data_keys("folder", str(tmp_path / "a")), prompt="which?")
    assert own.splits == ("train", "validation", "test")
    assert [[sample.targets for sample in own.samples(split)] for split in own.splits] == [
        [("blue",), ("red",)], [("red",)], [("blue",)]
    ]  # fmt: skip
    assert data_keys("folder", str(tmp_path / "a"), "test") == data_keys("folder", str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"b: `dev` and `val` could both be the split `validation`"):
        data_keys("folder", str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"c holds no `train`"):
        task("folder", **data_keys("folder", str(tmp_path / "c"))).samples("train")


def test_texts_beside_media_are_their_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media(tmp_path, "0.JPG", "1.v2.jpg", "deep/er/0.png", "2.jpg", "3.jpg", "4.wav", "4.jpg", "5.jpg", ".6.jpg")
    put(tmp_path / "0.TXT", "\ufeffa cat\r\n\r\n  two words \r\n")
    put(tmp_path / "1.v2.txt", "é".encode("utf-16"))
    put(tmp_path / "deep/er/0.txt", "['a', 'b']\n")
    put(tmp_path / "4.txt", "both\rcr")
    put(tmp_path / "README.txt", "no caption")
    put(tmp_path / "5.json", {})
    read = task("folder", train=tmp_path, text_files=True, metric="CIDEr").samples("train")
    assert [(s.id, *s.media, *s.targets) for s in read] == [
        ("0", "image", "a cat", "two words"),
        ("1.v2", "image", "é"),
        ("4", "image", "audio", "both", "cr"),
        ("deep/er/0", "image", "a", "b"),
    ]
    assert [medium.is_file() for sample in read for medium in sample.media.values()] == [True] * 5
    said = "3 media have no text beside them, first 2.jpg; 1 texts have no medium beside them, first README.txt"
    assert f"train: {said}; passed over: 1 .json, 1 hidden or system file\n" in capsys.readouterr().err
    put(tmp_path / "4.txt", "changed")
    assert task("folder", train=tmp_path, text_files=True, metric="CIDEr").samples("train")[2].targets == ("changed",)
    only = task("folder", train=tmp_path, text_files=True, metric="CIDEr", modality="audio").samples("train")
    assert [(s.id, *s.media) for s in only] == [("4", "audio")]


@pytest.mark.parametrize(
    ("files", "text", "message"),
    [
        (["1.jpg"], "caf\xe9".encode("latin-1"), r"1\.txt, line 1: not UTF-8"),
        (["1.jpg"], b" \n", r"1\.txt: `targets` is empty"),
        (["1.jpg", "1.png"], b"a", r"1\.txt: 1\.jpg and 1\.png could both be its image"),
        (["2.jpg"], b"a", r"no medium has a text file .*: 1 media have no text beside them, first 2\.jpg; 1 texts"),
    ],
)
def test_texts_that_are_no_targets(files: list[str], text: bytes, message: str, tmp_path: Path) -> None:
    media(tmp_path, *files)
    put(tmp_path / "1.txt", text)
    own = task("folder", train=tmp_path, text_files=True, metric="CIDEr")
    with pytest.raises(UserError, match=message):
        own.samples("train")
    if "UTF-8" in message:
        latin = task("folder", train=tmp_path, text_files=True, metric="CIDEr", encoding="latin-1")
        assert latin.samples("train")[0].targets == (text.decode("latin-1"),)


def test_a_folder_of_split_folders_of_texts_is_no_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        media(tmp_path, f"{split}/1.jpg")
        put(tmp_path / split / "1.txt", split)
    with pytest.raises(UserError, match="holds the splits `train`, `test`"):
        task("folder", train=tmp_path, text_files=True, metric="CIDEr").samples("train")
    own = task("folder", **data_keys("folder", str(tmp_path)), text_files=True, metric="CIDEr")
    assert [own.samples(split)[0].targets for split in own.splits] == [("train",), ("test",)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_keys_of_metadata(suffix: str, tmp_path: Path) -> None:
    media(tmp_path, "in/1.jpg", "in/1.wav")
    row = {"Picture": "1.jpg", "sound": "1.wav", "Question": "what?", "a": "x", "b": "y", "name": "one", "page": "3"}
    text = f"{','.join(row)}\n{','.join(row.values())}\n" if suffix == "csv" else json.dumps(row)
    put(tmp_path / f"in/metadata.{suffix}", text)
    keys = {"image_key": "picture", "audio_key": "sound", "prompt_key": "question", "target_key": ["a", "b"]}
    (sample,) = task("folder", train=tmp_path, **keys, id_key="name").samples("train")
    assert (sample.id, sample.prompt, sample.targets, sample.meta) == ("one", "what?", ("x", "y"), {"page": "3"})
    assert sample.media == {"image": tmp_path / "in/1.jpg", "audio": tmp_path / "in/1.wav"}


@pytest.mark.parametrize("key", ["file_name", "File_Name", "FILE_NAME", "Image_File_Name"])
def test_file_names_in_any_letter_case(key: str, tmp_path: Path) -> None:
    media(tmp_path, "1.jpg")
    put(tmp_path / "metadata.jsonl", {key: "1.jpg", "Text": "a", "text ": "b"})
    (sample,) = task("folder", train=tmp_path, metric="CIDEr").samples("train")
    assert (sample.media, sample.targets) == ({"image": tmp_path / "1.jpg"}, ("a",))
    assert sample.meta == {"text ": "b"}


def test_a_folder_without_samples_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media(tmp_path, "a/1.jpg", "a/2.jpg", "b/red/1.xyz", "b/red/2.xyz", "c/1.jpg", "c/red/1.jpg")
    with pytest.raises(UserError, match=r"2 media lie in the folder itself and none below it: put each into a folder"):
        targets(tmp_path / "a")
    with pytest.raises(UserError, match=r"no medium in it and no metadata \(passed over: 2 \.xyz\)"):
        targets(tmp_path / "b")
    assert len(targets(tmp_path / "c")) == 1
    assert "1 media lie in no class's folder" in capsys.readouterr().err


def test_the_check_notes_what_is_passed_over(tmp_path: Path) -> None:
    for name in ("red/1.png", "red/.hidden.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "set" / name)
    media(tmp_path, "set/red/1.xyz")
    recipe = put(tmp_path / "r.yaml", json.dumps({"task": {"name": "folder", "train": "set", "prompt": "which?"}}))
    found = validate_dataset(str(recipe), options=CheckOptions(tokens=False)).report
    assert found["splits"]["train"]["form"] == ["passed over: 1 .xyz, 1 hidden or system file"]


def test_links_to_folders_are_followed_and_not_in_circles(tmp_path: Path) -> None:
    media(tmp_path, "elsewhere/1.jpg", "set/red/1.jpg")
    (tmp_path / "set" / "blue").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "green").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "red" / "up").symlink_to(tmp_path / "set")
    found = [file.relative_to(tmp_path / "set").as_posix() for file in walk(tmp_path / "set", PassedOver())]
    assert found == ["blue/1.jpg", "green/1.jpg", "red/1.jpg"]


def test_notes_of_macos_in_shards_are_passed_over(tmp_path: Path) -> None:
    members = [("__MACOSX/._1.jpg", b"x"), ("._1.jpg", b"x"), ("1.jpg", b"x"), ("1.json", tars.row())]
    (tmp_path / "a.tar").write_bytes(tars.archive([*members, (".trash/2.jpg", b"x"), ("__MACOSX/2.jpg", b"x")]))
    assert [sample.id for sample in task("webdataset", train=tmp_path / "a.tar").samples("train")] == ["1"]
