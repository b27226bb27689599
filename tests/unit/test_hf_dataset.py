"""Data sets of the library `datasets`, written and read on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptune.data.lazy_rows import LazyRows
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from shelves import media, task

datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")

N = 4


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No hub, and caches of its own."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(**more: tuple[list[Any], Any]) -> Any:
    """Pictures, of which each is of one grey, with questions and classes."""
    grey = [Image.fromarray(np.full((8, 8, 3), 10 * n, np.uint8)) for n in range(N)]
    columns = {
        "picture": (grey, datasets.Image()),
        "prompt": ([f"what é {n}?" for n in range(N)], datasets.Value("string")),
        "label": ([n % 2 for n in range(N)], datasets.ClassLabel(names=["cat", "dog"])),
        "answers": ([["a", "b"]] * N, datasets.List(datasets.Value("string"))),
        **more,
    }
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    return datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)


def save(folder: Path, form: str, data: Any) -> Path:
    if form == "parquet":
        data.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    split = {"dict": datasets.DatasetDict({"train": data}), "single": data}[form]
    split.save_to_disk(folder / "saved")
    return folder / "saved"


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
        task("hf-dataset", path=place, **options).samples("train")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").touch()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    for name, message in (("rows.txt", "not one of the files"), ("rows.parquet", "cannot read"), ("no", "cannot read")):
        with pytest.raises(UserError, match=rf"{name}.*{message}|{message}.*{name}"):
            task("hf-dataset", path=tmp_path / name).samples("train")
