"""WebDataset shards, local and remote: found by pattern, read sample by sample; what is wrong is said by name."""

from __future__ import annotations

import json
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from perceptune.data import storage
from perceptune.data.media.source import content, identity
from perceptune.data.metrics.base import Scored
from perceptune.errors import UserError
from perceptune.evaluation.results import write_predictions
from perceptune.evaluation.runner import EvalOutput, Prediction
from perceptune.models.run_folder import METHOD
from tars import PAIR, REMOTE, Members, archive, put, read, row, task

pytestmark = pytest.mark.usefixtures("own_cache")
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_are_what_was_written(kind: int, place: str) -> None:
    draw = random.Random(0)
    written = {}
    for shard in range(3):
        members: Members = []
        for number in range(7):
            name = f"part.{shard}/{'long-name-' * draw.choice([0, 9])}{number}"
            picture = draw.randbytes(draw.choice([1, 511, 512, 513, 70_000]))
            pair = [(f"{name}.JPG", picture), (f"{name}.json", row(page=number))]
            draw.shuffle(pair)
            members += [*pair, (f"{name}.seg.png", b"x"), (f"part.{shard}/._hidden.jpg", b"x")]
            written[name] = picture, {"page": number}, f"/train-{shard}.tar#{name}.jpg"
        put(f"{place}/train-{shard}.tar", archive(members, kind))
    samples = task(f"{place}/train-*.tar").samples("train")
    assert [sample.id for sample in samples] == list(written), "shard by shard, member by member"
    for sample in samples:
        medium = sample.media["image"]
        picture, meta, name = written[sample.id]
        assert (content(medium), sample.meta) == (picture, meta)
        assert (sample.prompt, sample.targets) == ("what?", ("a cat", "cat"))
        assert str(medium).endswith(name)
    assert len({identity(sample.media["image"]) for sample in samples}) == len(written)


@pytest.mark.parametrize(
    ("members", "options", "prompt", "targets", "meta"),
    [
        ({"png": b"x", "txt": b" a dog \n"}, {}, "", ("a dog",), {}),
        ({"webp": b"x", "json": b'{"caption": "a dog", "page": 2}'}, {}, "", ("a dog",), {"page": 2}),
        ({"jpg": b"x", "json": b'{"page": 2}', "txt": b"a dog"}, {}, "", ("a dog",), {"page": 2}),
        ({"jpg": b"x", "json": b'{"caption": null}', "txt": b"a dog"}, {}, "", ("a dog",), {}),
        ({"jpg": b"x", "json": b'{"caption": "a", "targets": "b", "prompt": "c?"}'}, {}, "c?", ("b",), {}),
        ({"jpg": b"x", "meta.json": b'{"q": "c?", "a": ["b"]}'},
         {"json_key": "meta.json", "prompt_key": "q", "target_key": "a"}, "c?", ("b",), {}),
        ({"jpg": b"x", "png": b"y", "txt": b"a"}, {"image_key": "PNG", "json_key": "txt"}, "", ("a",), {}),
    ],
)  # fmt: skip
def test_prompts_targets_and_captions(
    members: dict[str, bytes], options: dict[str, Any], prompt: str, targets: tuple[str, ...], meta: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    put(f"{tmp_path}/a.tar", archive([(f"1.{part}", data) for part, data in members.items()]))
    [sample] = read(tmp_path / "a.tar", allow_empty_prompt=True, **options)
    assert (sample.prompt, sample.targets, sample.meta) == (prompt, targets, meta)
    assert content(sample.media["image"]) == (b"y" if options.get("image_key") else b"x")


def test_a_test_split_may_lack_targets_and_the_metric_must_come(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive([("1.jpg", b"x"), ("1.json", b'{"prompt": "what?", "answer_type": "count"}')]))
    own = task(tmp_path / "a.tar", test=tmp_path / "a.tar", metric="accuracy_cuont")
    assert own.splits == ("train", "test")
    with pytest.raises(UserError, match="no key `targets`"):
        own.samples("train")
    with pytest.raises(UserError, match="no metric `accuracy_cuont`; did you mean `accuracy_count`"):
        own.samples("test")
    own.metric = "accuracy_count"
    [sample] = own.samples("test")
    with pytest.raises(UserError, match="sample `1` has no targets"):
        own.score(["2"], [sample])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{008..011}.tar", ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]),
        ("x-{8..10}", ["x-8", "x-9", "x-10"]),
        ("x-{0..2}", ["x-0", "x-1", "x-2"]),
        ("x-{2..1}{a,b}", ["x-2a", "x-2b", "x-1a", "x-1b"]),
        ("{a,b{1,2}}", ["a", "b1", "b2"]),
        ("x-{a}-{1}", ["x-{a}-{1}"]),
    ],
)
def test_braces_are_a_shells(pattern: str, names: list[str], tmp_path: Path) -> None:
    assert storage.expand(f"{tmp_path}/{pattern}") == [f"{tmp_path}/{name}" for name in names]
    assert storage.expand(f"s3x/{pattern}") == [str(Path("s3x", name).absolute()) for name in names]


def test_wildcards_are_sorted_and_may_follow_braces(place: str) -> None:
    names = ["b-1", "b-0", "a-10", "a-2", "c-0"]
    for name in names:
        put(f"{place}/{name}.tar", archive([(f"{name}.jpg", b"x"), (f"{name}.json", row())]))
    found = [sample.id for sample in read(f"{place}/{{b,a}}-*.tar")]
    assert found == ["b-0", "b-1", "a-10", "a-2"]


def test_a_pattern_without_files_names_the_nearest(place: str) -> None:
    for name in ("train-0.tar", "train-1.tar", "notes.txt"):
        put(f"{place}/{name}", archive([]))
    with pytest.raises(UserError, match=r"no file fits .*/trian-\*\.tar; the nearest names in .* are `train-.\.tar`"):
        task(f"{place}/trian-*.tar").samples("train")
    with pytest.raises(UserError, match=r"there is no .*train-2\.tar; the nearest names .*`train-[01]\.tar`"):
        task(f"{place}/train-{{0..2}}.tar").samples("train")
    with pytest.raises(UserError, match="nowhere is no folder or an empty one"):
        task(f"{place}/nowhere/*.tar").samples("train")
    with pytest.raises(UserError, match="holds no samples"):
        task(f"{place}/train-?.tar").samples("train")


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(protocol: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"`{protocol}://` needs the package `{package}`: run `pip install {package}`"):
        task(f"{protocol}://bucket/x-*.tar").samples("train")
    with pytest.raises(UserError, match="cannot read zzz://x: Protocol not known: zzz"):
        task("zzz://x").samples("train")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("1.json", row())],
            "sample `1`: it lacks a part `jpg` or `jpeg` or .* or `flac` or .* or `mp4` or .*; it has `json`",
        ),
        ([*PAIR, ("2.jpg", b"x")], "sample `2`: it lacks a part `json` or `txt`; it has `jpg`"),
        ([*PAIR, ("1.png", b"x")], "sample `1`: `jpg` and `png` could both be its image; choose by `image_key`"),
        ([*PAIR, PAIR[1]], r"sample `1`: two members are called `1\.json`"),
        ([PAIR[0], ("2.jpg", b"x"), PAIR[1]], "sample `1`: its members do not lie side by side"),
        ([PAIR[0], ("1.json", b'{"prompt"')], "sample `1`, `json`: invalid JSON: .*; expected one object"),
        ([PAIR[0], ("1.json", b"[1]")], "sample `1`, `json`: a list, not an object"),
        ([PAIR[0], ("1.json", b"")], "sample `1`: no key `prompt`"),
        ([PAIR[0], ("1.json", b"\xe9")], "sample `1`, `json`: not UTF-8"),
        ([PAIR[0], ("1.json", row(prompt=None))], "sample `1`: `prompt` is null"),
        ([PAIR[0], ("1.json", row(targets=[]))], "sample `1`: `targets` is empty"),
        (
            [PAIR[0], ("1.json", b'{"prompt": "a", "captoin": "b"}')],
            "sample `1`: no key .*`captoin`; did you mean `caption`",
        ),
        ([PAIR[0], ("1.txt", b"a dog")], "sample `1`: a caption and no `prompt`: set `allow_empty_prompt: true`"),
    ],
)
def test_an_error_names_shard_and_sample(members: Members, message: str, tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive(members))
    for options in ({}, {"skip_invalid": 0}) if len(members) < 3 else ({"skip_invalid": 0},):
        with pytest.raises(UserError, match=rf"a\.tar, {message}"):
            read(tmp_path / "a.tar", **options)


def test_a_sample_in_two_shards(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive(PAIR))
    put(f"{tmp_path}/b.tar", archive(PAIR))
    with pytest.raises(UserError, match=r"b\.tar: the sample `1` is in .*a\.tar, too"):
        read(tmp_path / "[ab].tar")


def test_predictions_name_shard_and_member(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive(PAIR))
    own = task(tmp_path / "a.tar")
    write_predictions(
        tmp_path / "p.jsonl", own.samples("train"), own, EvalOutput(Scored({}, [{}]), [Prediction("a cat")])
    )
    assert json.loads((tmp_path / "p.jsonl").read_text())["media"] == {"image": f"{tmp_path}/a.tar#1.jpg"}


def test_sounds_come_as_pictures_do(tmp_path: Path) -> None:
    both: Members = [("2.wav", b"y"), ("2.jpg", b"z"), ("2.json", row())]
    put(f"{tmp_path}/a.tar", archive([("1.FLAC", b"x"), ("1.json", row()), *both]))
    first, second = read(tmp_path / "a.tar")
    assert {name: content(medium) for name, medium in first.media.items()} == {"audio": b"x"}
    assert {name: content(medium) for name, medium in second.media.items()} == {"image": b"z", "audio": b"y"}
    put(f"{tmp_path}/b.tar", archive([("1.left.wav", b"x"), ("1.wav", b"y"), ("1.mp3", b"z"), ("1.json", row())]))
    [chosen] = read(tmp_path / "b.tar", audio_key="left.wav")
    assert {name: content(medium) for name, medium in chosen.media.items()} == {"audio": b"x"}
    with pytest.raises(UserError, match="`wav` and `mp3` could both be its audio; choose by `audio_key`"):
        read(tmp_path / "b.tar")


def test_clips_come_as_pictures_do(tmp_path: Path) -> None:
    both: Members = [("2.gif", b"y"), ("2.jpg", b"z"), ("2.json", row())]
    put(f"{tmp_path}/a.tar", archive([("1.MP4", b"x"), ("1.json", row()), *both]))
    first, second = read(tmp_path / "a.tar")
    assert {name: content(medium) for name, medium in first.media.items()} == {"video": b"x"}
    assert {name: content(medium) for name, medium in second.media.items()} == {"image": b"z", "video": b"y"}
    put(f"{tmp_path}/b.tar", archive([("1.front.mp4", b"x"), ("1.mp4", b"y"), ("1.jpg", b"z"), ("1.json", row())]))
    [chosen] = read(tmp_path / "b.tar", video_key="front.mp4")
    assert {name: content(medium) for name, medium in chosen.media.items()} == {"video": b"x"}
    with pytest.raises(UserError, match=r"it lacks a part `back\.mp4`; it has `front\.mp4`, `mp4`, `jpg`, `json`"):
        read(tmp_path / "b.tar", video_key="back.mp4")


def as_shards(data: Path, place: str, size: int) -> None:
    """The rows of a JSONL file as shards of `size` samples, in the same order."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for start in range(0, len(rows), size):
        members: Members = []
        for index, values in enumerate(rows[start : start + size], start):
            picture = (data.parent / values.pop("image")).read_bytes()
            members += [(f"{index}.png", picture), (f"{index}.json", json.dumps(values).encode())]
        put(f"{place}/train-{start // size}.tar", archive(members))


def test_training_on_shards_equals_training_on_the_files(dwarfs: Path, place: str, tmp_path: Path) -> None:
    data = dwarfs / "data/train.jsonl"
    as_shards(data, place, 7)
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    perceptune.train(given, tmp_path / "files")
    given["task"] = {"name": "webdataset", "train": f"{place}/train-{{0..1}}.tar"}
    perceptune.train(given, tmp_path / "shards")
    assert (tmp_path / "files" / METHOD).read_bytes() == (tmp_path / "shards" / METHOD).read_bytes()
    answers = [perceptune.evaluate(tmp_path / run, split="train", control=True) for run in ("files", "shards")]
    assert answers[0]["accuracy"] == answers[1]["accuracy"]


def test_patterns_are_relative_to_the_recipe_and_absolute_in_the_run(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_shards(dwarfs / "data/train.jsonl", str(tmp_path), 7)
    as_shards(dwarfs / "data/train.jsonl", REMOTE, 12)
    names = {"train": "train-{0..1}.tar", "validation": f"{REMOTE}/train-0.tar"}
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", task={"name": "webdataset", **names})
    (tmp_path / "mine.yaml").write_text(json.dumps(given))
    perceptune.train(tmp_path / "mine.yaml", tmp_path / "run")
    stored = perceptune.load_recipe(tmp_path / "run" / "run.yaml").task
    assert stored is not None
    assert stored.options() == {**names, "train": f"{tmp_path}/train-{{0..1}}.tar"}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    perceptune.train(None, tmp_path / "run", resume=True)
