"""Captions of one medium in several rows: one sample with all of them, in every reader of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.lazy_rows import LazyRows, select
from perceptune.data.row_groups import RowGroups
from perceptune.errors import UserError
from perceptune.tools.datasets.convert import convert
from perceptune.tools.datasets.validate import validate_dataset
from perceptune.types import Sample
from shelves import media, put, task, there_and_back

pytestmark = pytest.mark.usefixtures("own_cache")
ROWS = [("0.jpg", "a cat"), ("1.jpg", "a dog"), ("0.jpg", "one cat"), ("2.jpg", "a hen"), ("0.jpg", "a tom")]
WANTED = [("0.jpg", ("a cat", "one cat", "a tom")), ("1.jpg", ("a dog",)), ("2.jpg", ("a hen",))]
SAID = "5 rows with one caption each are grouped to 3 samples; `group_rows: false` keeps them"


def written(reader: str, folder: Path) -> dict[str, Any]:
    """Write `ROWS` for a reader; return its options."""
    media(folder, "0.jpg", "1.jpg", "2.jpg")
    rows = [{"image": name, "caption": text} for name, text in ROWS]
    if reader == "csv":
        return {"train": put(folder / "captions.txt", "image,caption\n" + "".join(f"{a},{b}\n" for a, b in ROWS))}
    if reader == "jsonl":
        return {"train": put(folder / "rows.jsonl", "\n".join(map(json.dumps, rows)))}
    if reader == "json":
        return {"train": put(folder / "rows.json", {"data": rows})}
    if reader == "folder":
        names = [{"file_name": name, "text": text} for name, text in ROWS]
        put(folder / "metadata.jsonl", "\n".join(map(json.dumps, names)))
        return {"train": folder}
    datasets = pytest.importorskip("datasets")
    texts = [text for _, text in ROWS]
    if reader == "hf-dataset of names":
        saved = datasets.Dataset.from_dict({"picture": [str(folder / name) for name, _ in ROWS], "caption": texts})
        keys = {"image_key": "picture"}
    else:
        pictures = [{"bytes": name.encode(), "path": None} for name, _ in ROWS]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        saved, keys = datasets.Dataset.from_dict({"image": pictures, "caption": texts}, features=features), {}
    saved.save_to_disk(folder / "saved")
    return {"path": folder / "saved", **keys}


READERS = ["csv", "jsonl", "json", "folder", "hf-dataset of names", "hf-dataset of bytes"]


@pytest.mark.parametrize("reader", READERS)
def test_rows_of_a_medium_become_one_sample(
    reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    options, name = written(reader, tmp_path), reader.split()[0]
    made = task(name, metric="CIDEr", **options)
    samples = made.samples("train")
    assert f"train: {SAID}\n" in capsys.readouterr().err
    names = [m.decode() if isinstance(m, bytes) else m.name for s in samples for m in s.media.values()]  # type: ignore[union-attr]
    assert [*zip(names, (s.targets for s in samples), strict=True)] == WANTED
    rows = task(name, metric="CIDEr", group_rows=False, **options).samples("train")
    assert [sample.targets for sample in rows] == [(text,) for _, text in ROWS]
    assert [sample.id for sample in samples] == [rows[index].id for index in (0, 1, 3)], "of the first row"
    made.samples("train")
    assert capsys.readouterr().err == "", "said once, and only where rows are grouped"
    if "bytes" not in reader:
        there_and_back(samples, tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_check_reports_the_groups(reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = written(reader, tmp_path)
    made = task(reader.split()[0], metric="CIDEr", **options)
    found = made.examine("train")
    assert len([*found.rows]) == 5
    assert SAID in found.form()
    assert "grouped" not in capsys.readouterr().err
    assert len(made.samples("train")) == 3


def test_commands_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written("csv", tmp_path)["train"]
    keys = ["task.name=csv", f"task.train={path}", "task.metric=CIDEr"]
    assert SAID in validate_dataset(str(path), keys).report["splits"]["train"]["form"]
    assert convert("csv", tmp_path / "out.jsonl", keys[1:]) == 3
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["targets"] for row in rows] == [[*targets] for _, targets in WANTED]


def test_only_captions_with_the_same_media_and_prompt_are_grouped(tmp_path: Path) -> None:
    media(tmp_path, "0.jpg", "0.wav")
    rows: list[dict[str, Any]] = [
        {"image": "0.jpg", "targets": "a", "page": 1}, {"image": "./0.jpg", "targets": ["b", "c"], "page": 2},
        {"image": "0.jpg", "audio": "0.wav", "targets": "d"}, {"image": "0.jpg", "prompt": "short:", "targets": "e"},
        {"image": None, "targets": "f"}, {"image": None, "targets": "g"},
    ]  # fmt: skip
    path = put(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    made = task("jsonl", train=path, metric="CIDEr")
    samples = made.samples("train")
    assert [sample.targets for sample in samples] == [("a", "b", "c"), ("d",), ("e",), ("f",), ("g",)]
    assert samples[0].meta == {"page": 1}
    assert made.form("train") == [
        "6 rows with 7 captions are grouped to 5 samples; `group_rows: false` keeps them"
    ]  # fmt: skip
    answers = task("jsonl", train=path, allow_empty_prompt=True).samples("train")
    assert len(answers) == 6, "several answers to a question are no references of a caption"


def test_missing_media_are_left_out_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = written("csv", tmp_path)
    (tmp_path / "1.jpg").unlink()
    samples = task("csv", metric="CIDEr", skip_missing=1, **options).samples("train")
    assert [sample.targets for sample in samples] == [WANTED[0][1], WANTED[2][1]]
    assert "4 rows with one caption each are grouped to 2 samples" in capsys.readouterr().err
    (tmp_path / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"captions\.txt, line 2: cannot read `image` 0\.jpg.*1 more files"):
        task("csv", metric="CIDEr", skip_missing=1, **options).samples("train")


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["", "p"]), st.integers(0, 2)), min_size=1, max_size=30),
    st.data(),
)
def test_groups_keep_the_order_of_rows(given_rows: list[tuple[int, str, int]], data: st.DataObject) -> None:
    rows = [
        Sample(str(n), {"image": Path(f"{m}.jpg")} if m else {}, prompt, tuple(f"{n}.{k}" for k in range(count)))
        for n, (m, prompt, count) in enumerate(given_rows)
    ]
    groups = RowGroups()
    wanted: dict[Any, list[Sample]] = {}
    for row in rows:
        groups.add(row)
        wanted.setdefault((tuple(row.media.items()), row.prompt) if row.media else row.id, []).append(row)
    lazy = LazyRows(lambda indices: (rows[index] for index in indices), np.arange(len(rows)))
    merged = groups.merged(lazy)
    expected = [(some[0].id, tuple(t for row in some for t in row.targets)) for some in wanted.values()]
    assert [(sample.id, sample.targets) for sample in merged] == expected
    chosen = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=8))
    assert [(merged[index].id, merged[index].targets) for index in chosen] == [expected[index] for index in chosen]
    picked = select(merged, chosen)
    assert [(sample.id, sample.targets) for sample in picked] == [expected[index] for index in chosen]
    assert bool(groups.note()) == (len(expected) < len(rows))


def test_several_media_are_grouped_by_their_order_and_places(tmp_path: Path) -> None:
    media(tmp_path, "a.jpg", "b.jpg")
    pairs = [["a.jpg", "b.jpg"], ["b.jpg", "a.jpg"]]
    prompts = ["<image> over <image>", "over <image><image>"]
    rows = [
        {"image": pair, "prompt": prompt, "caption": f"{n}"} for n in range(2) for pair in pairs for prompt in prompts
    ]
    file = put(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    samples = task("jsonl", train=file, metric="CIDEr").samples("train")
    assert [sample.targets for sample in samples] == [("0", "1")] * 4
