"""Data sets of the library `datasets`, written and read on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hfsets import BYTES, PATH, PICTURE, N, encoded, rows, save, table
from perceptune.data.lazy_rows import LazyRows
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import CheckOptions, validate_dataset
from perceptune.types import Mark, Medium
from shelves import media, put, task

datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
pytestmark = pytest.mark.usefixtures("own_cache", "offline_datasets")


@pytest.mark.parametrize("form", ["dict", "single", "parquet"])
def test_rows_with_their_media_undecoded(form: str, tmp_path: Path) -> None:
    samples = task("hf-dataset", path=save(tmp_path, form, rows())).samples("train")
    assert isinstance(samples, LazyRows)
    assert [(s.id, s.prompt, s.targets) for s in samples] == [
        (f"train-{n:06d}", f"what é {n}?", (("cat", "dog")[n % 2],)) for n in range(N)
    ]
    assert samples[2].meta == {"answers": ["a", "b"]}
    picture = samples[2].media["image"]
    assert isinstance(picture, bytes)
    assert np.asarray(open_image(picture)).max() == 20
    assert samples[2].media == samples[2].media, "the same bytes, and so the same key in the cache"


def test_a_column_of_names_and_a_share_of_a_split(tmp_path: Path) -> None:
    media(tmp_path, "a.wav")
    sounds = ([str(tmp_path / "a.wav")] * N, datasets.Value("string"))
    ids = ([f"s{n}" for n in range(N)], datasets.Value("string"))
    place = save(tmp_path, "parquet", rows(sound=sounds, id=ids).remove_columns("picture"))
    samples = task("hf-dataset", path=place, audio_key="sound", train="train[:50%]").samples("train")
    assert [s.id for s in samples] == ["s0", "s1"]
    assert samples[0].media == {"audio": tmp_path / "a.wav"}


def test_captions(tmp_path: Path) -> None:
    data = rows(caption=(["a"] * N, datasets.Value("string"))).remove_columns(["prompt", "label"])
    reader = task("hf-dataset", path=save(tmp_path, "dict", data), metric="CIDEr")
    assert {(s.prompt, s.targets) for s in reader.samples("train")} == {("", ("a",))}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"train": "trian"}, "no split `trian`; did you mean `train`"),
        ({}, {"image_key": "pictur"}, "`image_key`: no column `pictur`; did you mean `picture`"),
        ({}, {"prompt_key": "promt"}, "row 0: no key `promt`"),
        ({}, {"target_key": "tagets"}, "row 0: no key `tagets`"),
        ({"id": ["a", "b", "a", "c"]}, {}, "row 2: its `id` is that of row 0, too"),
        ({"prompt": ["a", "b", " ", "c"]}, {}, "row 2: `prompt` holds no text"),
        ({"targets": ["a", None, "b", "c"]}, {}, "row 1: `targets` is null"),
        ({"picture": None}, {}, "no column of images, audio or videos among prompt, label, answers; name one"),
        ({"second": None}, {}, "picture and second could both be the image; choose by `image_key`"),
    ],
)
def test_errors_name_the_data_set_and_the_row(change: Any, options: Any, message: str, tmp_path: Path) -> None:
    [name, values], data = [*change.items(), (None, None)][0], rows()
    if name == "picture":
        data = data.remove_columns("picture")
    elif name == "second":
        data = rows(second=([Image.new("L", (8, 8))] * N, datasets.Image()))
    elif name:
        data = rows(**{name: (values, datasets.Value("string"))})
    place = save(tmp_path, "dict", data)
    with pytest.raises(UserError, match=rf"saved.*{message}"):
        task("hf-dataset", path=place, skip_invalid=0, **options).samples("train")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").touch()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    for name, message in (("rows.txt", "not one of the files"), ("rows.parquet", "cannot read"), ("no", "cannot read")):
        with pytest.raises(UserError, match=rf"{name}.*{message}|{message}.*{name}"):
            task("hf-dataset", path=tmp_path / name).samples("train")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([PICTURE] * 2, PICTURE),
        (pa.array([PICTURE] * 2, pa.large_binary()), PICTURE),
        ([BYTES] * 2, PICTURE),
        ([{"bytes": PICTURE}] * 2, PICTURE),
        ([{**BYTES, "path": "no.png"}, PATH], PICTURE),
        ([[PICTURE], [PICTURE]], PICTURE),
        ([[BYTES], [BYTES]], PICTURE),
        ([PATH] * 2, Path("in/a.png")),
        (["in/a.png"] * 2, Path("in/a.png")),
        (pa.array(["in/a.png"] * 2, pa.large_string()), Path("in/a.png")),
        (pa.array(["in/a.png"] * 2).dictionary_encode(), Path("in/a.png")),
        ([["in/a.png"], ["in/a.png"]], Path("in/a.png")),
        ([f"file://{Path(__file__)}", "in/a.png"], Path(__file__)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["image", "audio"])
def test_cells_with_media(name: str, cells: Any, expected: Medium, tmp_path: Path) -> None:
    place = table(tmp_path / "sub/a.parquet", {name: cells})
    samples = task("hf-dataset", path=place).samples("train")
    if isinstance(expected, Path):
        expected = tmp_path / "sub" / expected
    assert samples[0].media == {name: expected}
    assert samples[1].meta == {}
    renamed = table(tmp_path / "b.parquet", {"foto": cells})
    chosen = task("hf-dataset", path=renamed, media=tmp_path / "sub", **{f"{name}_key": "foto"}).samples("train")
    assert [sample.media for sample in chosen] == [sample.media for sample in samples]


@pytest.mark.parametrize("feature", ["Image", "List", "audio"])
def test_typed_columns_and_lists_of_them(feature: str, tmp_path: Path) -> None:
    kind = {"_type": "Audio" if feature == "audio" else "Image"}
    cells = [[BYTES], [PATH]] if feature == "List" else [BYTES, PATH]
    kind = {"feature": kind, "_type": "List"} if feature == "List" else kind
    features = {"pictures": kind, "caption": {"dtype": "string", "_type": "Value"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"pictures": cells, "caption": ["a", "b"], "prompt": None, "targets": None}
    table(tmp_path / "a.parquet", columns, about)
    samples = task("hf-dataset", path=tmp_path / "a.parquet", metric="CIDEr").samples("train")
    modality = "audio" if feature == "audio" else "image"
    assert [sample.media[modality] for sample in samples] == [PICTURE, tmp_path / "in/a.png"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [PICTURE], "b": [PICTURE]}, {}, "`a` and `b` hold bytes: choose by `image_key`"),
        ({"a": [b"?"]}, {}, "`a` hold bytes"),
        ({"a": [b"%PDF"]}, {}, "`a` hold bytes; the first holds a PDF file: choose by"),
        ({"a": [3]}, {"image_key": "a"}, "`image_key`: `a` holds neither media nor names of files"),
        ({"image": [["in/a.png", "https://x/a.jpg"]]}, {}, "row 0: `image` is an address"),
        ({"image": [["in/a.png", "in/b.png"]]}, {}, "row 0: cannot read `image` .*in/b.png"),
        ({"image": [[PICTURE] * 2], "prompt": ["<image>?"]}, {}, "row 0: 1 `<image>` .*, but 2 images given"),
        ({"image": [[None, b""]]}, {}, "row 0: `image` is empty"),
        ({"image": ["https://x/a.jpg"]}, {}, "row 0: `image` is an address"),
        ({"image": [{"bytes": None, "path": "s3://x/a.jpg"}]}, {}, "row 0: `image` is an address"),
        ({"image": ["in/b.png"]}, {}, "row 0: cannot read `image` .*in/b.png: .* did you mean `a.png`"),
        ({"image": [{**BYTES, "bytes": None, "path": "c"}]}, {}, "row 0: cannot read `image` .*c: .*holds no `c`"),
        ({"image": ["in/a.png"], "targets": None, "label": [3]}, {}, "row 0: `label` is a number: `class_names` gives"),
    ],
)
def test_cells_without_plain_media(columns: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"a\.parquet.*{message}"):
        task("hf-dataset", path=table(tmp_path / "a.parquet", columns), **options).samples("train")


def test_a_lone_column_of_bytes_is_told_by_its_first_medium(tmp_path: Path) -> None:
    place = table(tmp_path / "a.parquet", {"content": [None, b"fLaC" + b"x" * 20], "mask": None})
    samples = task("hf-dataset", path=place).samples("train")
    assert [(s.id, *s.media) for s in samples] == [("train-000001", "audio")]
    only = table(tmp_path / "b.parquet", {"image": [PICTURE] * 2, "prompt": None, "targets": None})
    found = task("hf-dataset", path=only, test="train", prompt="what?").samples("test")
    assert [(s.prompt, s.targets, s.media) for s in found] == [("what?", (), {"image": PICTURE})] * 2


@pytest.mark.parametrize(
    ("metadata", "options", "labels"),
    [
        ({"label_names": '["cat", "dog"]'}, {}, [0, 1]),
        ({"id2label": '{"0": "cat", "1": "dog"}'}, {}, [0, 1]),
        ({"PANDAS_ATTRS": '{"names": {"label": ["cat", "dog"]}}'}, {}, [0, 1]),
        (None, {"class_names": ["cat", "dog"]}, [0, 1]),
        (None, {"class_names": ["cat", "dog"]}, [[0], [1]]),
        (None, {}, pa.array(["cat", "dog"]).dictionary_encode()),
        (None, {}, [["cat"], ["dog"]]),
        (None, {"target_key": ["label", "more"]}, ["cat", "dog"]),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "data/train-00000-of-00001.parquet"])
def test_names_of_classes_and_lists(name: str, metadata: Any, options: Any, labels: Any, tmp_path: Path) -> None:
    place = table(
        tmp_path / name, {"image": ["a.png"] * 2, "label": labels, "more": [None] * 2, "targets": None}, metadata
    )
    samples = task("hf-dataset", path=place if name == "a.parquet" else tmp_path, **options).samples("train")
    assert [sample.targets for sample in samples] == [("cat",), ("dog",)]
    assert samples[0].media == {"image": place.parent / "a.png"}


def test_missing_files_are_found_by_the_check_and_need_not_be_there(tmp_path: Path) -> None:
    place = table(tmp_path / "a.parquet", {"image": ["in/b.png", PATH["path"]]})
    assert len(task("hf-dataset", path=place, check_files=False).samples("train")) == 2
    assert [sample.id for sample in task("hf-dataset", path=place).samples("train")] == ["train-000001"]
    (tmp_path / "in/a.png").write_bytes(PICTURE)
    recipe = put(tmp_path / "r.yaml", {"task": {"name": "hf-dataset", "path": "a.parquet"}})
    found = validate_dataset(str(recipe), options=CheckOptions(tokens=False)).report["problems"]
    assert {kind: entry["count"] for kind, entry in found.items()} == {"missing-medium": 1}


def test_numbers_as_they_are(tmp_path: Path) -> None:
    place = table(tmp_path / "a.parquet", {"image": ["a.png"] * 2, "label": [7, 0], "targets": None})
    samples = task("hf-dataset", path=place, target_key="label").samples("train")
    assert [sample.targets for sample in samples] == [("7",), ("0",)]


def test_numbers_that_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(label=([0, -1, 1, 0], datasets.ClassLabel(names=["cat", "dog"])))
    place = save(tmp_path, "dict", datasets.concatenate_datasets([data] * 6))
    assert len(task("hf-dataset", path=place, skip_invalid=6).samples("train")) == 18
    assert "6 of 24 samples are invalid and left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"row 1: `label` is -1, and the classes are 0 to 1"):
        task("hf-dataset", path=place).samples("train")
    unlabelled = task("hf-dataset", path=place, test="train").samples("test")
    assert [sample.targets for sample in unlabelled[:3]] == [("cat",), (), ("dog",)]


def test_invalid_rows_are_left_out_listed_and_found_by_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [PICTURE] * 40
    targets: list[Any] = [f"a{n}" for n in range(40)]
    cells[3], targets[7] = None, ""  # type: ignore[call-overload]
    place = table(tmp_path / "a.parquet", {"image": cells, "targets": targets})
    samples = task("hf-dataset", path=place).samples("train")
    assert [sample.targets[0] for sample in samples] == [f"a{n}" for n in range(40) if n not in (3, 7)]
    assert (samples[3].id, samples[-1].targets) == ("train-000004", ("a39",))
    said = capsys.readouterr().err
    assert "train: 2 of 40 samples are invalid and left out (`skip_invalid: 0.05`):\n" in said
    assert "row 3: `image` is empty\n" in said
    recipe = put(tmp_path / "r.yaml", {"task": {"name": "hf-dataset", "path": "a.parquet"}})
    found = validate_dataset(str(recipe), options=CheckOptions(tokens=False)).report
    assert {kind: entry["count"] for kind, entry in found["problems"].items()} == {"no-medium": 1, "empty-target": 1}
    with pytest.raises(UserError, match=r"row 3: `image` is empty; `skip_invalid: 1` lets 1 of 40 samples be left out"):
        task("hf-dataset", path=place, skip_invalid=1).samples("train")


@pytest.mark.parametrize("kind", ["bytes", "objects", "paths", "images"])
def test_a_list_column_gives_several_media(kind: str, tmp_path: Path) -> None:
    other = encoded(Image.new("L", (4, 4), 255))
    if kind == "images":
        few = datasets.List(datasets.Image())
        pictures = [[Image.new("L", (4, 4), 255), Image.new("L", (4, 4))], [Image.new("L", (4, 4))], []]
        file = save(tmp_path, "parquet", rows(picture=([*pictures, pictures[0]], few)))
        options = {"prompt_key": "none", "image_key": "picture", "target_key": "label", "skip_invalid": 1}
        found = task("hf-dataset", path=file, prompt="<image> or <image>?", **options).samples("train")
        sizes = [2, 1, 2]
    else:
        objects = [[{"bytes": other, "path": None}, BYTES], [BYTES], [{**BYTES, "bytes": None}, BYTES], [BYTES] * 2]
        values: Any = {
            "objects": objects,
            "bytes": [[other, PICTURE], [PICTURE], [None, PICTURE], [PICTURE, None, other]],
            "paths": [["in/a.png", "a.png"], ["a.png"], ["", "a.png"], ["a.png", "in/a.png"]],
        }[kind]
        prompts = ["<image_2> or <image_1>?", "<image>?", "<image>?", "<image> or <image>?"]
        file = table(tmp_path / "a.parquet", {"images": values, "prompt": prompts})
        found = task("hf-dataset", path=file).samples("train")
        sizes = [2, 1, 1, 2]
        first = {"bytes": (PICTURE, other), "objects": (PICTURE, other)}.get(kind)
        assert found[0].media["image"] == (first or (tmp_path / "a.png", tmp_path / "in/a.png"))
        assert (found[1].prompt, found[1].marks) == ("?", (Mark(0, "image"),))
    assert [len(sample.list_media("image")) for sample in found] == sizes
    assert [isinstance(sample.media["image"], tuple) for sample in found] == [size > 1 for size in sizes]
    assert (found[0].prompt, found[0].marks) == ("or ?", (Mark(0, "image"), Mark(3, "image")))
