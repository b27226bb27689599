"""Task `json`: one document that holds all rows, in each of its usual shapes."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from perceptune.errors import UserError
from perceptune.tools.datasets.validate import validate_dataset
from shelves import MARK, media, put, task, there_and_back

pytestmark = pytest.mark.usefixtures("own_cache")
ROWS = [{"image": f"{n}.jpg", "prompt": "what?", "targets": [f"é {n}"], "page": n} for n in range(3)]
BY_ID = {f"k{n}": row for n, row in enumerate(ROWS)}
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "a list": (ROWS, {}),
    "an object with a list": ({"data": ROWS}, {}),
    "a list beside other keys": ({"info": {"year": 2024}, "version": "1", "tags": ["a"], "data": ROWS}, {}),
    "one of several lists": ({"licenses": [{"id": 1}], "data": ROWS}, {"rows_key": "data"}),
    "rows by id": (BY_ID, {}),
    "rows by id below a key": ({"data": BY_ID}, {}),
    "rows by id below one of several keys": ({"info": {"year": 2024}, "data": BY_ID}, {"rows_key": "data"}),
}


def document(folder: Path, content: Any, **options: Any) -> Any:
    media(folder, "0.jpg", "1.jpg", "2.jpg")
    return task("json", train=put(folder / "rows.json", content), **options)


@pytest.mark.parametrize("written", ["compact", "pretty", "byte order mark", "utf-16", "gzip"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_document_of_rows(shape: str, written: str, tmp_path: Path) -> None:
    content, options = SHAPES[shape]
    text = json.dumps(content, ensure_ascii=False, indent=2 if written == "pretty" else None)
    data = {"byte order mark": MARK + text.encode(), "utf-16": text.encode("utf-16")}.get(written, text.encode())
    media(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    path = put(tmp_path / "rows.json", data, zipped=written == "gzip")
    samples = task("json", train=path, **options).samples("train")
    assert [sample.targets for sample in samples] == [("é 0",), ("é 1",), ("é 2",)]
    assert [sample.media["image"].name for sample in samples] == ["0.jpg", "1.jpg", "2.jpg"]  # type: ignore[union-attr]
    by_id = "by id" in shape
    assert [sample.id for sample in samples] == [f"k{n}" if by_id else f"train-00000{n + 1}" for n in range(3)]
    there_and_back(samples, tmp_path)


def test_keys_of_other_names_and_ids_of_the_rows(tmp_path: Path) -> None:
    names = {"image_key": "img", "prompt_key": "q", "target_key": ["a", "b"], "id_key": "key"}
    rows = {"x": {"img": ["0.jpg"], "q": "what?", "a": 3, "b": ["three"]}, "y": {"img": "1.jpg", "q": "?a", "a": 1,
            "b": None, "key": "own"}}  # fmt: skip
    samples = document(tmp_path, rows, **names).samples("train")
    assert [(s.id, s.prompt, s.targets) for s in samples] == [("x", "what?", ("3", "three")), ("own", "?a", ("1",))]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"a": [{}], "b": [{}]}, {}, "rows could be those at `a`, `b`: choose by `rows_key`"),
        ({"dat": ROWS}, {"rows_key": "data"}, "`rows_key`: no key `data`; did you mean `dat`"),
        ({"data": ROWS, "n": 3}, {"rows_key": "n"}, "`rows_key`: `n` holds a number, not rows"),
        (ROWS, {"rows_key": "data"}, "a list of rows, which has no key `data`"),
        (ROWS[0], {}, "no list of rows and no rows by id, but an object with `image` .a string.*task `jsonl`"),
        (json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]), {}, "line 2: a second object follows.*task `jsonl`"),
        ([], {}, "holds no samples"),
        ({}, {}, "holds no samples"),
        ({"data": []}, {}, "holds no samples"),
        ([ROWS[0], 3], {}, "line 1, row 2: a number, not an object"),
        ([ROWS[0], {**ROWS[1], "targets": True}], {}, "line 1, row 2: `targets` is a boolean"),
        ([ROWS[0], {**ROWS[1], "image": "3.jpg"}], {}, r"line 1, row 2: cannot read `image` 3\.jpg"),
        ([{**ROWS[0], "id": 1}, {**ROWS[1], "id": 1}], {}, "line 1, row 2: the id `1` is that of line 1, row 1, too"),
        ({**BY_ID, "k9": {"image": "0.jpg"}}, {}, "row `k9`: no key `prompt`"),
        ({**BY_ID, "k9": 3}, {}, "but an object with `k0` .an object., .*`k9` .a number."),
        ('[{"image": "0.jpg",}]', {}, "line 1: invalid JSON"),
        ('[{"image": NaN}]', {}, "line 1: invalid JSON: NaN is no number"),
        ("[{}", {}, "line 1: invalid JSON: expected `,` or `]`, got the end of the file"),
        ('{"data": [{}]', {}, "invalid JSON: expected `,` or `}`, got the end of the file"),
        ("", {}, "expected `{` or `.`, got the end of the file"),
        ("[]]", {}, "`]` follows its end"),
        ("null", {}, "expected `{`"),
        (b'[{"image": "\xe9"}]', {}, "line 1: not UTF-8"),
    ],
)
def test_errors_name_the_row_or_the_key(content: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.json(, |: | ).*{message}|{message}"):
        document(tmp_path, content, **options).samples("train")


def test_a_large_document_is_streamed(tmp_path: Path) -> None:
    row = json.dumps({"image": None, "prompt": "what?", "targets": ["a"], "text": "x" * 1000})
    path = put(tmp_path / "rows.json", '{"info": {}, "data": [' + ",\n".join([row] * 16_000) + "]}")
    reader = task("json", train=path)
    tracemalloc.start()
    assert len(reader.samples("train")) == 16_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_check_agrees(tmp_path: Path) -> None:
    document(tmp_path, {"data": [*ROWS, {**ROWS[0], "image": "9.jpg"}]})
    path = tmp_path / "rows.json"
    checked = validate_dataset(str(path), ["task.name=json", f"task.train={path}"])
    assert checked.report["splits"]["train"]["rows"] == 4
    assert [*checked.report["problems"]] == ["missing-medium", "broken-medium"]  # the media are empty files
