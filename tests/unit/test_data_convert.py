"""Converting data: a round trip loses nothing, paths lead where they led, media leave archives safely."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planted
import tars
from formparts import picture
from perceptune.data.tasks.jsonl import JSONLines
from perceptune.errors import UserError
from perceptune.tools.datasets.convert import convert
from perceptune.tools.datasets.validate import validate_dataset
from perceptune.types import Sample

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.desk(tmp_path_factory.mktemp("desk"))


def read(file: Path, **options: Any) -> list[Sample]:
    return list(JSONLines(JSONLines.Options(train=file, **options)).samples("train"))


def resolved(samples: list[Sample]) -> list[tuple[Any, ...]]:
    return [
        (s.id, {key: Path(str(m)).resolve() for key, m in s.media.items()}, s.prompt, s.targets, dict(s.meta))
        for s in samples
    ]


def write(file: Path, *rows: object) -> Path:
    file.write_bytes(b"".join(planted.text(row) + b"\n" for row in rows))
    return file


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
meta = st.dictionaries(
    st.sampled_from(["page", "source", "über"]),
    st.none() | st.integers() | st.booleans() | words | st.lists(words, max_size=2),
    max_size=2,
)
media = st.sampled_from([{"image": "a.png"}, {"image": None}, {"image": "./b.png", "audio": "a.png"}])
prompts = words.map(lambda word: f"what {word}?")
targets = st.lists(words.map(lambda word: f"x{word}"), min_size=1, max_size=3)
rows_of_any_kind = st.lists(st.tuples(meta, media, prompts, targets), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(rows=rows_of_any_kind, numbered=st.booleans(), zipped=st.booleans(), absolute=st.booleans())
def test_jsonl_converted_says_the_same(
    desk: Path, rows: list[Any], numbered: bool, zipped: bool, absolute: bool
) -> None:
    (desk / "deep" / "er").mkdir(parents=True, exist_ok=True)
    out = desk / "deep" / "er" / ("out.jsonl.gz" if zipped else "out.jsonl")
    source = write(
        desk / "in.jsonl",
        *(
            {**meta, **media, "prompt": prompt, "targets": targets, **({"id": number} if numbered else {})}
            for number, (meta, media, prompt, targets) in enumerate(rows)
        ),
    )
    assert convert(str(source), out, absolute=absolute) == len(rows)
    assert resolved(read(out)) == resolved(read(source))
    again = out.with_name("again.jsonl")
    convert(str(out), again, absolute=absolute)
    data = out.read_bytes()
    assert again.read_bytes() == (gzip.decompress(data) if zipped else data), "converting twice changes nothing more"


def test_paths_are_relative_unless_asked_otherwise_and_lead_through_links(desk: Path, tmp_path: Path) -> None:
    source = write(desk / "in.jsonl", planted.good(0))
    real = tmp_path / "one" / "two"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    convert(str(source), tmp_path / "link" / "out.jsonl")
    [row] = map(json.loads, (real / "out.jsonl").read_text().splitlines())
    assert not Path(row["image"]).is_absolute()
    assert read(tmp_path / "link" / "out.jsonl")[0].media["image"].is_file()  # type: ignore[union-attr]
    planted.desk(tmp_path / "one")
    beside = write(tmp_path / "link" / "in.jsonl", planted.good(0, image="../a.png"))
    convert(str(beside), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0].media["image"].samefile(tmp_path / "one" / "a.png")  # type: ignore[union-attr]
    convert(str(source), tmp_path / "link" / "out.jsonl", absolute=True)
    [row] = map(json.loads, (real / "out.jsonl").read_text().splitlines())
    assert Path(row["image"]) == (desk / "a.png").resolve()


def test_other_tasks_by_name_recipe_and_split(desk: Path, tmp_path: Path) -> None:
    file = write(desk / "in.jsonl", planted.good(0), planted.good(1))
    keys = [f"task.train={file}", f"task.test={file}"]
    assert convert("jsonl", tmp_path / "a.jsonl", keys, split="test") == 2
    (desk / "r.yaml").write_text("task: {name: jsonl, train: in.jsonl}\n")
    assert convert(str(desk / "r.yaml"), tmp_path / "b.jsonl") == 2
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    with pytest.raises(UserError, match="several splits: choose one by `--split`: `train`, `test`"):
        convert("jsonl", tmp_path / "c.jsonl", keys)
    assert not (tmp_path / "c.jsonl").exists()


def shard(desk: Path, *names: str) -> list[str]:
    picture = (desk / "a.png").read_bytes()
    members = [pair for name in names for pair in ((f"{name}.png", picture), (f"{name}.json", tars.row(page=1)))]
    (desk / "a.tar").write_bytes(tars.archive(members))
    return [f"task.train={desk / 'a.tar'}"]


def test_media_leave_archives_into_a_folder(desk: Path, tmp_path: Path) -> None:
    keys = shard(desk, "0", "sub/1")
    with pytest.raises(UserError, match=r"sample `0`: its image lies in .*a\.tar: give `--media DIR`"):
        convert("webdataset", tmp_path / "out.jsonl", keys)
    assert list(tmp_path.glob("*.jsonl")) == []
    assert convert("webdataset", tmp_path / "out.jsonl", keys, media=tmp_path / "files") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["files/0.png", "files/sub/1.png"]
    assert rows[1] == {
        "id": "sub/1", "image": "files/sub/1.png", "prompt": "what?", "targets": ["a cat", "cat"], "page": 1
    }  # fmt: skip
    assert (tmp_path / "files/0.png").read_bytes() == (desk / "a.png").read_bytes()
    assert validate_dataset(str(tmp_path / "out.jsonl")).clean


@pytest.mark.parametrize("name", ["../1", "a/../../1", "/tmp/1"])
def test_no_member_is_written_outside_the_folder(name: str, desk: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name for a file below `--media`"):
        convert("webdataset", tmp_path / "out.jsonl", shard(desk, name), media=tmp_path / "in" / "files")
    assert not list(tmp_path.rglob("1.png"))


def test_a_mistake_in_the_source_leaves_the_old_file(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    source = write(desk / "in.jsonl", planted.good(0), planted.good(1, targets=[]))
    with pytest.raises(UserError, match="line 2: `targets` is empty"):
        convert(str(source), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda desk: ("jsonll", desk / "o.jsonl"), r"no file and no recipe `jsonll`; did you mean `jsonl`\?"),
        (lambda desk: (str(desk / "in.jsonl"), desk / "in.jsonl"), "is what is to be converted"),
        (lambda desk: (str(desk / "in.jsonl"), desk / "no" / "o.jsonl"), "there is no folder"),
        (lambda desk: ("jsonl", desk / "o.jsonl"), "`train`: Field required"),
    ],
)
def test_wrong_calls(call: Callable[[Path], tuple[str, Path]], message: str, desk: Path) -> None:
    before = write(desk / "in.jsonl", planted.good(0)).read_bytes()
    with pytest.raises(UserError, match=message):
        convert(*call(desk))
    assert (desk / "in.jsonl").read_bytes() == before


def test_several_media_of_a_table_have_files_of_their_own(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    first, second = picture(0), picture(1)
    columns = {"images": [[first, second], [second]], "prompt": ["<image> or <image>?", "a?"], "targets": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    out = tmp_path / "out.jsonl"
    assert convert(str(tmp_path / "rows.parquet"), out, ["task.target_key=targets"], media=tmp_path / "media") == 2
    pair, one = read(out)
    assert [path.read_bytes() for path in pair.list_media("image") if isinstance(path, Path)] == [first, second]
    assert (pair.prompt, [mark.at for mark in pair.marks]) == ("or ?", [0, 3])
    assert [path.name for path in one.list_media("image") if isinstance(path, Path)] == ["train-000001.bin"]
