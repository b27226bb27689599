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
from perceptune.data.build_task import data_keys
from perceptune.data.media.source import content, identity
from perceptune.data.metrics.base import Scored
from perceptune.data.tasks.webdataset import split_shards
from perceptune.errors import UserError
from perceptune.evaluation.results import write_predictions
from perceptune.evaluation.runner import EvalOutput, Prediction
from perceptune.models.run_folder import METHOD
from shelves import task as made
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
