"""Paths as people write them are understood, and why a file is not there is named: by readers, checks and commands."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest

import sounds
from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import MediaError, open_image
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import validate_dataset
from perceptune.utils.paths import absence, given_path, hint, local_name
from shelves import media, put, task

COMPOSED, PARTED = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of many names, and links that lead nowhere."""
    media(tmp_path, PARTED, "IMG_1.JPG", "photos/1.jpg", "my photo.jpg", "plain.jpg", "deep/é/2.png")
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "linked").symlink_to("/no/such/folder")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    return tmp_path


CASES = [
    (COMPOSED, r"another Unicode form \(NFD\): 'cafe\\u0301\.jpg', not 'caf\\xe9\.jpg'"),
    ("link.jpg", r"`link\.jpg` .*is a link to gone\.jpg, which is not there"),
    ("linked/1.jpg", r"`linked` .*is a link to /no/such/folder, which is not there"),
    ("round.jpg", r"is a link to round\.jpg"),
    ("img_1.jpg", r"in other letter case: `IMG_1\.JPG`"),
    ("Photos/1.jpg", r"holds no `Photos`; .*in other letter case: `photos`"),
    ("photos\\1.jpg", r"a backslash does not part folders here: write `photos/1\.jpg`, which is there"),
    ("my%20photo.jpg", r"percent-encoded: write `my photo\.jpg`"),
    ("plain", r"a suffix is missing: did you mean `plain\.jpg`"),
    ("plain.jpg\n", r"it holds this name with other white space around it: `plain\.jpg`"),
    ("plain.png", r"did you mean `plain\.jpg`"),
    ("nowhere/1.jpg", r"holds no `nowhere`"),
    ("photos", "it is a folder"),
]


@pytest.mark.parametrize(("name", "cause"), CASES, ids=[ascii(name) for name, _ in CASES])
def test_the_cause_is_named_by_all_that_look_for_files(folder: Path, name: str, cause: str, own_cache: None) -> None:
    row = {"image": name, "prompt": "what?", "targets": ["a"]}
    with pytest.raises(UserError, match=cause):
        task("jsonl", train=put(folder / "rows.jsonl", row)).samples("train")
    with pytest.raises(MediaError, match=cause if name != "photos" else "is a folder"):
        open_image(folder / name)
    (said,) = validate_dataset(str(folder / "rows.jsonl")).report["problems"]["missing-medium"]["first"]
    assert re.search(cause, said)


def test_other_commands_name_it_too(folder: Path, own_cache: None) -> None:
    put(folder / "Rows.jsonl", {"image": None, "prompt": "what?", "targets": ["a"]})
    with pytest.raises(UserError, match=r"no file and no recipe .*in other letter case: `Rows\.jsonl`"):
        validate_dataset(str(folder / "rows.jsonl"))
    with pytest.raises(UserError, match=r"cannot read .*in other letter case: `Rows\.jsonl`"):
        task("jsonl", train=folder / "rows.jsonl").samples("train")
    with pytest.raises(UserError, match=r"there is no .*in other letter case: `photos`"):
        task("webdataset", train=folder / "Photos" / "1.tar").samples("train")
    with pytest.raises(UserError, match=r"in other letter case: `photos`; task `folder` reads"):
        task("folder", train=folder / "Photos").samples("train")


def test_what_is_not_alike_is_not_guessed(folder: Path) -> None:
    assert hint(folder / "zzz") == ""
    assert absence(folder / "zzz").why() == f"{folder} holds no `zzz`"
    assert "x" * 121 not in absence(folder / ("x" * 200)).why()


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "file://localhost{}", "FILE://{}", "~/{}", "{}"])
def test_home_and_file_addresses_are_understood(
    tmp_path: Path, form: str, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my sound.wav").write_bytes(sounds.encoded(sounds.tone()))

    def written(name: str) -> str:
        if form.startswith("~"):
            return form.format(name)
        return form.format(f"{tmp_path}/{name.replace(' ', '%20') if ':' in form else name}")

    row = {"audio": written("my sound.wav"), "prompt": "what?", "targets": ["a"]}
    rows = put(tmp_path / "rows.jsonl", row)
    (sample,) = task("jsonl", train=written("rows.jsonl")).samples("train")
    assert sample.media["audio"] == tmp_path / "my sound.wav"
    assert validate_dataset(written("rows.jsonl")).clean
    assert read_audio(given_path(written("my sound.wav")), 16_000, 1.0).size
    put(tmp_path / "set" / "metadata.jsonl", {"file_name": row["audio"], "text": "a"})
    (sample,) = task("folder", train=written("set"), allow_empty_prompt=True).samples("train")
    assert sample.media["audio"] == tmp_path / "my sound.wav"
    assert rows == tmp_path / "rows.jsonl"


def test_other_names_stay_as_they_are() -> None:
    for name in ("~", "~root/a.jpg", "a~/b", "https://a.org/file:/x", "file.jpg", "file:x", "file://host/x", "C:\\x"):
        assert local_name(name) == name


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        if os.access(closed, os.R_OK):
            pytest.skip("this user may read everything")
        assert "denied" in hint(closed / "x")
    finally:
        closed.chmod(0o700)
