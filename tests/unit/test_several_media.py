"""Rows with several media of a modality: lists in every kind of file, and the places that tags give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tars
from perceptune.errors import UserError
from perceptune.evaluation.batch_predict import _records
from perceptune.types import Mark, Sample
from shelves import media, put, task

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ["a.jpg", "d.jpg", "e.jpg"]
PAIR = ["a.jpg", "d.jpg"]


def marks(*places: int, modality: str = "image") -> tuple[Mark, ...]:
    return tuple(Mark(at, modality) for at in places)


def names(sample: Sample, modality: str = "image") -> list[str]:
    return [medium.name for medium in sample.list_media(modality) if not isinstance(medium, bytes)]


def read(folder: Path, prompt: str, *, name: str = "jsonl", **values: Any) -> Sample:
    media(folder, *NAMES, "c.wav", "b.wav", "b.mp4")
    row = {"prompt": prompt, "targets": "yes", **({"image": PAIR} | values)}
    [sample] = task(name, train=put(folder / "rows.jsonl", row)).samples("train")
    return sample


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "json list in csv", "folder"])
def test_a_list_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    media(tmp_path, *NAMES)
    row = {"images": PAIR, "prompt": "Which?", "targets": "yes"}
    options: dict[str, Any] = {}
    if kind == "jsonl":
        file = put(tmp_path / "rows.jsonl", row)
    elif kind == "json":
        file = put(tmp_path / "rows.json", [row])
    elif kind == "folder":
        file = tmp_path
        put(tmp_path / "metadata.jsonl", {"file_names": PAIR, "prompt": "Which?", "targets": "yes"})
    else:
        text = json.dumps(PAIR) if kind == "json list in csv" else str(PAIR)
        cell = text.replace('"', '""')
        file = put(tmp_path / "rows.csv", f'images,prompt,targets\n"{cell}",Which?,yes\n"[\'e.jpg\']",What?,no\n')
    first, *others = task(kind.rpartition(" ")[2], train=file, **options).samples("train")
    assert (names(first), first.prompt, first.marks) == (PAIR, "Which?", ())
    assert [sample.media["image"] for sample in others] == [tmp_path / "e.jpg"] * len(others)


def test_lists_of_one_and_of_none(tmp_path: Path) -> None:
    assert read(tmp_path, "?<image> a", image=["a.jpg"]).media == {"image": tmp_path / "a.jpg"}
    assert read(tmp_path, "? a", image=[None, "a.jpg"]).media == {"image": tmp_path / "a.jpg"}
    assert read(tmp_path, "? a", image=[None, None]).media == {}


@pytest.mark.parametrize(
    ("prompt", "text", "marks"),
    [
        ("<image>\nwhat is it?", "what is it?", (Mark(0, "image"),)),
        ("what is it?\n<image>", "what is it?", (Mark(11, "image"),)),
        ("what does <image> mean in HTML?", "what does <image> mean in HTML?", ()),
        ("<audio> at <image>?", "<audio> at <image>?", ()),
        ("<image> or <image>?", "<image> or <image>?", ()),  # not the place of the one image
        ("what does <video> mean?", "what does <video> mean?", ()),
        ("what is it?", "what is it?", ()),
    ],
)
def test_one_tag_is_the_place_of_a_single_medium(
    tmp_path: Path, prompt: str, text: str, marks: tuple[Mark, ...]
) -> None:
    one = read(tmp_path, prompt, image="a.jpg", audio="c.wav")
    assert one.prompt == text
    assert set(marks) <= set(one.marks)
    assert bool(one.marks) == bool(marks)


@pytest.mark.parametrize(
    ("prompt", "text", "places", "order"),
    [
        ("Which?", "Which?", (), PAIR),
        ("<image>\n<image>\nWhich?", "Which?", (0, 0), PAIR),
        ("Is <image> redder than <image>?", "Is redder than ?", (3, 15), PAIR),
        ("What? <image> <image>", "What?", (5, 5), PAIR),
        ("<image_1> or <image_2>?", "or ?", (0, 3), PAIR),
        ("<image_2> or <image_1>?", "or ?", (0, 3), PAIR[::-1]),
        ("<image 2> or <image 1>?", "or ?", (0, 3), PAIR[::-1]),
        ("<|image_1|>\n<|image_2|>\nWhich?", "Which?", (0, 0), PAIR),
        ("Picture 1: <image>\nPicture 2: <image>\nWhich?", "Which?", (0, 0), PAIR),
        ("Picture 2:\nPicture 1:\nWhich?", "Which?", (0, 0), PAIR[::-1]),
        ("Image 1: a cat? Image 2: a dog?", "Image 1: a cat? Image 2: a dog?", (), PAIR),
        ("<ImageHere><ImageHere>Which?", "Which?", (0, 0), PAIR),
        (
            "<|vision_start|><|image_pad|><|vision_end|>or<|vision_start|><|image_pad|><|vision_end|>",
            "or",
            (0, 2),
            PAIR,
        ),
        ("Picture 1: <img>d.jpg</img>\nPicture 2: <img>a.jpg</img>\nWhich?", "Which?", (0, 0), PAIR[::-1]),
        ("<audio> and <image><image>", "<audio> and", (11, 11), PAIR),
    ],
)
def test_tags_become_marks(
    prompt: str, text: str, places: tuple[int, ...], order: list[str], tmp_path: Path
) -> None:  # fmt: skip
    sample = read(tmp_path, prompt)
    assert (sample.prompt, sample.marks, names(sample)) == (text, marks(*places), order)


def test_tags_of_several_modalities(tmp_path: Path) -> None:
    sample = read(tmp_path, "<image>, <image> and <audio>?", audio="c.wav")
    assert sample.prompt == ", and ?"
    assert sample.marks == (*marks(0, 2), Mark(6, "audio"))
    untagged = read(tmp_path, "Is <image> like <image>?", audio=["c.wav", "b.wav"])
    assert untagged.marks == (*marks(0, 0, modality="audio"), *marks(3, 8))
    assert names(untagged, "audio") == ["c.wav", "b.wav"]


@pytest.mark.parametrize(
    ("prompt", "values", "message"),
    [
        ("<image>?", {}, "1 `<image>` in the prompt, but 2 images given"),
        ("<image><image><image>?", {}, "3 `<image>` in the prompt, but 2 images given"),
        ("<image_1> <image_3>?", {}, "have the numbers 1, 3, not 1 to 2 once each"),
        ("<image_1> Picture: <image_1>?", {}, "have the numbers 1, 1, not 1 to 2 once each"),
        ("<image>?", {"image": None, "audio": ["b.wav", "c.wav"]}, "1 `<image>` in a turn, but 0 image"),
        ("<audio>?", {"image": None, "audio": ["b.wav", "c.wav"]}, "1 `<audio>` in the prompt, but 2 audio given"),
        ("<image_1>?", {"image": None, "audio": ["b.wav", "c.wav"]}, "`<image_1>` in the prompt, but no image"),
        ("<image><image>", {}, "the prompt holds nothing but tags"),
        ("?a", {"image": ["a.jpg", "f.jpg"]}, r"cannot read `image` f\.jpg: "),
        ("?a", {"image": ["a.jpg", ""]}, r"`image\[1\]` is empty"),
        ("?a", {"image": ["a.jpg", "http://x/a.jpg"]}, r"`image\[1\]` is an address"),
    ],
)
def test_refusals_name_the_row(prompt: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 1: .*{message}"):
        read(tmp_path, prompt, **values)


def test_rows_that_are_predicted_are_read_as_rows_that_are_trained_on(tmp_path: Path) -> None:
    media(tmp_path, *NAMES)
    rows = [
        {"id": "a", "image": PAIR, "prompt": "<image_2> or <image_1>?"},
        {"id": "b", "image": PAIR, "prompt": "<image>"},
    ]
    file = put(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    [good, bad] = _records(file, file, None, True, None)
    assert good.sample is not None
    assert (good.sample.prompt, good.sample.marks, names(good.sample)) == ("or ?", marks(0, 3), PAIR[::-1])
    assert (bad.sample, "1 `<image>` in the prompt, but 2 images given" in bad.error) == (None, True)


class TestShards:
    @pytest.mark.parametrize("parts", [("0.jpg", "1.jpg", "10.jpg"), ("img1.jpg", "img2.png", "img3.jpg")])
    def test_numbered_parts_are_a_list(self, parts: tuple[str, ...], tmp_path: Path) -> None:
        members = [(f"7.{part}", part.encode()) for part in sorted(parts)]
        text = tars.row(prompt="<image_2> <image_1> or <image_3>?")
        tars.put(str(tmp_path / "a.tar"), tars.archive([*members, ("7.json", text)]))
        [sample] = tars.read(tmp_path / "a.tar")
        assert names(sample) == [f"7.{parts[1]}", f"7.{parts[0]}", f"7.{parts[2]}"]
        assert (sample.prompt, sample.marks) == ("or ?", marks(0, 0, 3))

    def test_one_numbered_part_is_one_medium(self, tmp_path: Path) -> None:
        tars.put(str(tmp_path / "a.tar"), tars.archive([("7.0.jpg", b"x"), ("7.json", tars.row())]))
        [sample] = tars.read(tmp_path / "a.tar")
        assert not isinstance(sample.media["image"], tuple)

    def test_a_plain_part_goes_first(self, tmp_path: Path) -> None:
        members = [("7.jpg", b"x"), ("7.0.jpg", b"y"), ("7.1.jpg", b"z"), ("7.json", tars.row())]
        tars.put(str(tmp_path / "a.tar"), tars.archive(members))
        [sample] = tars.read(tmp_path / "a.tar")
        assert names(sample) == ["7.jpg"]

    @pytest.mark.parametrize("parts", [("left0.jpg", "right1.jpg"), ("0.jpg", "00.jpg")])
    def test_other_parts_are_refused(self, parts: tuple[str, ...], tmp_path: Path) -> None:
        members = [*((f"7.{part}", b"x") for part in parts), ("7.json", tars.row())]
        tars.put(str(tmp_path / "a.tar"), tars.archive(members))
        with pytest.raises(UserError, match=f"`{parts[0]}`"):
            tars.read(tmp_path / "a.tar")
