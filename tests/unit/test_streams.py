"""Files larger than memory: JSON lists object by object, lines that never end, rows kept in the cache."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perceptune.data import json_stream, lazy_rows, records
from perceptune.data.records import Record
from perceptune.data.tasks._streams import json_objects, kept, parquet_rows
from perceptune.errors import UserError
from shelves import MARK, put, task

pytestmark = pytest.mark.usefixtures("own_cache")


def values(path: Path) -> list[Any]:
    return [row.values for row in json_objects(path)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_list_is_the_list_whatever_is_read_at_once(
    chunk: int, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_PIECE", chunk)
    draw = random.Random(chunk)
    rows = [{"a": "é" * draw.randrange(40) + '"]},{', "n": [1.5, {"x": None}], "i": n} for n in range(20)]
    for indent, mark in ((None, b""), (3, MARK)):
        data = mark + b" \r\n" * (not mark) + json.dumps(rows, indent=indent, ensure_ascii=False).encode() + b"\n\n"
        assert values(put(tmp_path / "rows.json", data, zipped=zipped)) == rows
    assert values(put(tmp_path / "none.json", "[ ]")) == []


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_words_and_numbers_are_never_cut(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_PIECE", chunk)
    given = [1.25, -3e21, 10, True, None, 0.5e-3, "a", [], 7]
    stream = json_stream.JSONStream(io.BytesIO(json.dumps(given).encode()), "a")
    stream.take("[")
    assert [value for _, value in stream.items()] == given
    stream.end()


def test_where_rows_of_a_list_stand(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", '[\n{"a":\n1}\n,\n\n{"b": "\\n"}, {}]')
    assert [row.where for row in json_objects(path)] == [f"{path}, line {line}" for line in (2, 6, 6)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1}\n{"b": 2}]', "line 2: invalid JSON: expected `,` or `]`, got `{`"),
        (b'[{"a": 1},\n', "line 2: invalid JSON"),
        (b'[{"a": 1}\n', "line 2: invalid JSON: expected `,` or `]`, got the end of the file"),
        (b'[\n\n{"a": 1, }]', "line 3: invalid JSON"),
        (b"[\n3]", "line 2: a number in the list, not an object"),
        (b'[\n{"a": -Infinity}]', "line 2: .*-Infinity is no number in JSON; write null"),
        (b'[\n{"a":\n "\xe9"}]', "line 3: not UTF-8"),
        (b'{"a": 1}\n{"a": NaN}', "line 2: invalid JSON: NaN is no number in JSON; write null"),
        (b'{"a": 1}\n[]', "line 2: a list, not an object; expected a list of objects, or one object a line"),
        (b'[{"a": 1}]\n[{"a": 2}]', r"line 2: invalid JSON: `\[` follows its end"),
        (b'[{"a": 1},]', r"line 1: invalid JSON: Expecting value at '\]'"),
        (b"[" * 100_000, "line 1: invalid JSON"),
    ],
)
def test_errors_name_the_line(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.json, {message}"):
        values(put(tmp_path / "rows.json", data))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_a_line_without_an_end_is_refused_in_bounded_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_rows, "MAX_LINE", 2**20)
    monkeypatch.setattr(records, "MAX_LINE", 2**20)
    monkeypatch.setattr(json_stream, "MAX_LINE", 2**20)
    start = {"rows.jsonl": b'{"a": "', "rows.json": b'[{"a": "', "rows.csv": b"image,prompt\n"}[name]
    path = put(tmp_path / name, start + b"x" * 2**26)
    reader = task({"rows.jsonl": "jsonl", "rows.json": "llava", "rows.csv": "csv"}[name], train=path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"{name}, line [12]: longer than 1 MiB"):
            reader.samples("train")
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()


def test_a_list_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.json", [{"id": n, "text": "x" * 900} for n in range(20_000)])
    next(iter(json_objects(path)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_objects(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20 < path.stat().st_size
    finally:
        tracemalloc.stop()


def test_rows_are_made_once_for_a_file_and_its_settings(tmp_path: Path) -> None:
    source, made = put(tmp_path / "a", "1"), []

    def rows() -> Iterator[Record]:
        made.append(1)
        yield Record("here", {"é": "\ud83d"}, ())

    for how in ("x", "x", "y", "y"):
        [line] = kept([source], how, rows).read_text().splitlines()
        assert json.loads(line) == ["here", {"é": "\ud83d"}]
    assert len(made) == 2
    put(source, "12")
    kept([source], "x", rows)
    assert len(made) == 3


def test_values_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="here: a value that JSON cannot hold"):
        kept([put(tmp_path / "a", "1")], "x", lambda: [Record("here", {"a": b"bytes"}, ())])


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        list(parquet_rows(put(tmp_path / "a.parquet", gzip.compress(b"no"))))


def test_a_table_reads_its_rows_when_they_are_asked_for(tmp_path: Path) -> None:
    rows = (f"a{n}.jpg,what {n}?,b\n" for n in range(3_000))
    path = put(tmp_path / "rows.csv", "image,prompt,targets\n" + "".join(rows))
    samples = task("csv", train=path, check_files=False).samples("train")
    assert isinstance(samples, lazy_rows.LazyRows)
    assert [samples[n].prompt for n in (2_999, 0)] == ["what 2999?", "what 0?"]
