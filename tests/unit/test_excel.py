"""Task `excel`: sheets of workbooks as tables, their cells as they are shown."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest

from perceptune.errors import UserError
from shelves import media, put, task, there_and_back

openpyxl = pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")
HEADER = ["Image", "prompt", "targets", "id", "page"]
ROWS = [HEADER, ["1.jpg", "what, é?", "cat | a cat", 7, 3.0], [None, "and?", 2.5, None, None]]


def book(folder: Path, *sheets: Sequence[Sequence[Any]], names: Sequence[str] = (), hidden: Sequence[str] = ()) -> Path:
    """Write a workbook; a cell may be (value, number format)."""
    media(folder, "1.jpg")
    made = openpyxl.Workbook()
    made.remove(made.active)
    for number, rows in enumerate(sheets):
        sheet = made.create_sheet(names[number] if names else f"S{number}")
        sheet.sheet_state = "hidden" if sheet.title in hidden else "visible"
        for row in rows:
            sheet.append([cell[0] if isinstance(cell, tuple) else cell for cell in row])
            for cell, given in zip(sheet[sheet.max_row], row, strict=False):
                if isinstance(given, tuple):
                    cell.number_format = given[1]
    made.save(folder / "rows.xlsx")
    return folder / "rows.xlsx"


def read(path: Path, **options: Any) -> Any:
    return task("excel", train=path, **options).samples("train")


def test_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = read(book(tmp_path, [[], *ROWS[:2], [], ROWS[2]]))
    assert first.media == {"image": tmp_path / "1.jpg"}
    assert (first.id, first.prompt, first.targets, first.meta) == ("7", "what, é?", ("cat", "a cat"), {"page": "3"})
    assert (second.media, second.prompt, second.targets) == ({}, "and?", ("2.5",))
    assert capsys.readouterr().err == ""
    there_and_back([first], tmp_path)


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [["file", "q", "c1", "c2"], ["1.jpg", "what?", "a", "b"], ["1.jpg", "and?", None, "c"]]
    keys = {"image_key": "file", "prompt_key": "q", "target_key": ["c1", "c2"]}
    assert [sample.targets for sample in read(book(tmp_path, rows), **keys)] == [("a", "b"), ("c",)]


def test_captions_in_several_rows(tmp_path: Path) -> None:
    rows = [["image", "caption"], ["1.jpg", "a cat"], ["1.jpg", "one cat"]]
    assert [sample.targets for sample in read(book(tmp_path, rows), metric="CIDEr")] == [("a cat", "one cat")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.0, "3"), (3, "3"), (0.1 + 0.2, "0.3"), (-4.0, "-4"), ("  x ", "x"),
        ("007", "007"), (1e15, "1000000000000000"),
        ((0.5, "0%"), "50%"), ((0.125, "0.0%"), "12.5%"), ((2, "0.00"), "2.00"), ((7, "00000"), "00007"),
        ((1234.5, "#,##0.00"), "1,234.50"), ((-7, "000"), "-007"), ((2.5, "0.00;[Red]-0.00"), "2.50"),
        (datetime(2024, 5, 31), "2024-05-31"), (date(2024, 5, 31), "2024-05-31"), (time(9, 30), "09:30:00"),
        (datetime(2024, 5, 31, 9, 30), "2024-05-31 09:30:00"),
    ],
)  # fmt: skip
def test_cells_are_read_as_they_are_shown(value: Any, shown: str, tmp_path: Path) -> None:
    [sample] = read(book(tmp_path, [["image", "prompt", "targets"], ["1.jpg", "what?", value]]))
    assert sample.targets == (shown,)


def test_sheets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [HEADER, ["1.jpg", "other?", "b"]]
    path = book(tmp_path, [["notes"]], ROWS, other, names=["Old", "Data", "More"], hidden=["Old"])
    assert len(read(path)) == 2
    assert f"{path}: sheet `Data` of 2" in capsys.readouterr().err
    assert [sample.prompt for sample in read(path, sheet="More")] == ["other?"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"rows\.xlsx: no sheet `Mor`; did you mean `More`"):
        read(path, sheet="Mor")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([HEADER, ["2.jpg", "a?", "b"]], r"row 2: cannot read `image` 2\.jpg"),
        ([HEADER, ["1.jpg", "a?", True]], "row 2: `targets` is a boolean.*yes"),
        ([HEADER, ["1.jpg", "a?", None]], "row 2: `targets` is null"),
        ([HEADER, ["1.jpg", "a?", "#N/A"]], "row 2: the error #N/A in column C"),
        ([HEADER, ["1.jpg", "a?", "b", "x"], [], ["1.jpg", "a?", "b", "x"]], "row 4: the id `x` is that of"),
        ([HEADER, ["1.jpg", "a?", "b", "x", 1, "more"]], "row 2: 6 columns, expected 5"),
        ([["image", "image"], ["1.jpg", "a?"]], "row 1: two columns are called `image`"),
        ([["img", "prompt", "targets"], ["1.jpg", "a?", "b"]], "row 2: no key `image`.*given by `image_key`"),
    ],
)
def test_errors_name_sheet_and_row(rows: list[list[Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.xlsx, sheet `S0`, {message}"):
        read(book(tmp_path, rows))


@pytest.mark.parametrize("content", [b"image,prompt\n", b"", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 600])
def test_what_is_no_workbook(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*rows\.xlsx: no \.xlsx workbook, or one with a password"):
        read(put(tmp_path / "rows.xlsx", content))
    with pytest.raises(UserError, match=r"cannot read .*no\.xlsx"):
        read(tmp_path / "no.xlsx")


def test_an_empty_workbook(tmp_path: Path) -> None:
    for rows in ([], [HEADER]):
        with pytest.raises(UserError, match="holds no samples"):
            read(book(tmp_path, rows))


def test_a_damaged_workbook_is_one_error(tmp_path: Path) -> None:
    data, errors = book(tmp_path, ROWS).read_bytes(), 0
    for cut in range(100, len(data), 700):
        path = put(tmp_path / "cut.xlsx", data[:cut] + b"\0" * 40 + data[cut + 40 :])
        with suppress(UserError):
            errors += 1
            read(path)
            errors -= 1
    assert errors > 3


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = book(tmp_path, ROWS), builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "openpyxl":
            raise ImportError(name)
        return original(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs openpyxl: run `pip install 'perceptune\[excel\]'`"):
        read(path)
