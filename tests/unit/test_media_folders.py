"""Folders of media: what is read, what is passed over and said, and what is no class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import tars
from perceptune.data.media.suffixes import MEDIA, PassedOver, modality_of, walk
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
            UserError, match=r"holds the splits `te?.*, not classes: give one of them as `train`, such as"
        ):
            targets(tmp_path / name)
    assert [row[2] for row in targets(tmp_path / "c")] == ["bus", "train"]
    for split in ("train", "test"):
        media(tmp_path, f"d/{split}/1.jpg")
        put(tmp_path / "d" / split / "metadata.jsonl", {"file_name": "1.jpg", "text": "a"})
    with pytest.raises(UserError, match=r"holds the splits `test`, `train`"):
        targets(tmp_path / "d")
    assert len(targets(tmp_path / "d" / "train")) == 1


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
