"""Tables as spreadsheets write them: what is recognised is said, what is not names the key that settles it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perceptune.config.recipe import validate
from perceptune.data.records import listed
from perceptune.data.tabular import decoded, delimiter_named, recognize, table_records
from perceptune.data.tasks.csv import TASK
from perceptune.errors import UserError
from perceptune.evaluation.score_files.run import score_files

KNOWN = ("image", "prompt", "targets", "id")
ROWS = [("image", "prompt", "targets"), ("1.jpg", "what, é; is it?", "une fenêtre"), ("2.jpg", "how many?", "3")]


def written(delimiter: str = ",", *, end: str = "\r\n", start: str = "", tail: str = "") -> str:
    lines = [delimiter.join(f'"{cell}"' if set(cell) & set(",;") else cell for cell in row) + tail for row in ROWS]
    return start + end.join(lines) + end


def read(data: bytes, **given: Any) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    lines: Sequence[bytes] = data.splitlines(keepends=True) if b"\n" in data else [data]
    dialect = recognize(lambda: lines, "t.csv", known=KNOWN, **given)
    text = decoded(lines, "t.csv", dialect.encoding)
    return [row.values for row in table_records(text, "t.csv", dialect, known=KNOWN)], dialect.notes


EXPECTED = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        (written().encode(), ()),
        (written(end="\n").encode(), ()),
        (written(end="\r").encode(), ()),
        (b"\xef\xbb\xbf" + written().encode(), ()),
        (written(";").encode(), ("separated by semicolons",)),
        (written("\t").encode(), ("separated by tabs",)),
        (written("|").encode(), ("separated by bars",)),
        (written(";", start="sep=;\r\n").encode(), ("a line `sep=`", "separated by semicolons")),
        (written("\t", start='"sep=\t"\r\n').encode(), ("a line `sep=`", "separated by tabs")),
        (written(tail=",,").encode(), ()),
        (written(";", tail=";").encode(), ("separated by semicolons",)),
        (written().encode("cp1252"), ("cp1252 instead of UTF-8",)),
        (written(";").encode("cp1252"), ("cp1252 instead of UTF-8", "separated by semicolons")),
        (written().replace("image,", "Image,").replace("targets", "TARGETS").encode(), ()),
        ("\r\n".join(f"{number},{line}" if number else f",{line}" for number, line in
                     enumerate(written().splitlines())).encode(), ()),
    ],
)  # fmt: skip
def test_a_table_is_read_however_it_is_written(data: bytes, notes: tuple[str, ...]) -> None:
    assert read(data) == (EXPECTED, notes)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("image,prompt,targets\n1.jpg,что это?,окно\n".encode("cp1251"), r"line 2: not UTF-8.*`encoding`.*cp1251"),
        ("image,prompt,targets\n1.jpg,é?,x\n".encode() + b"1.jpg,a?,\xff\n", r"line 3: not UTF-8.*`encoding`"),
        (b"image;prompt,targets\n", "separated by commas or semicolons; say by `delimiter`"),
        (b"image,prompt,targets\n1.jpg,a?,b\0\n", "line 2: a NUL character"),
        (b'image,prompt,targets\n1.jpg,"a "b" c",d\n', "line 2: .*is written twice"),
        (b"image,prompt,targets,,\n1.jpg,a?,b,c,\n", "line 2: 'c' stands in column 4, which has no name"),
        (b"image,prompt,targets\n1.jpg,a?,b,c\n", "line 2: 4 columns, expected 3"),
        (b"image,prompt,targets\n1.jpg,a?\n", "line 2: 2 columns, expected 3"),
        (b"image^prompt^targets\n1.jpg^a, b^c\n", "line 2: 2 columns, expected 1: `image.prompt.+`delimiter`"),
        (b"image:prompt\n1.jpg,b\n", "line 2: 2 columns, expected 1.*`delimiter`"),
        (b"image,Image,targets\n", "two columns are called `image`"),
    ],
)
def test_what_cannot_be_told_names_the_line_or_the_key(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)t\.csv.*{words}"):
        read(data, settable=True)


def test_what_is_given_is_not_guessed() -> None:
    data = "image,prompt,targets\n1.jpg,что это?,окно\n".encode("cp1251")
    assert read(data, encoding="cp1251")[0] == [{"image": "1.jpg", "prompt": "что это?", "targets": "окно"}]
    assert read(b"a;b,c\n1;2,3\n", delimiter=",")[0] == [{"a;b": "1;2", "c": "3"}]


@pytest.mark.parametrize("text", ["\t", "\\t", "tab", "TAB"])
def test_a_tab_has_names(text: str) -> None:
    assert delimiter_named(text) == "\t"


@pytest.mark.parametrize(
    ("key", "value"),
    [("delimiter", text) for text in ("", "::", "\\n", "\n", '"', "tabb")]
    + [("encoding", "utf-9"), ("encoding", "hex")],
)
def test_another_delimiter_or_encoding_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"task `csv`: `{key}`: .*such as"):
        validate(TASK.Options, {"train": "x.csv", key: value}, "task `csv`")


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['a cup', 'cup']", ["a cup", "cup"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a cup' 'cup']", ["a cup", "cup"]),  # numpy
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("['a',\n 'b']", ["a", "b"]),
        ("""["it's", 'a "b"']""", ["it's", 'a "b"']),
        (r"['it\'s']", ["it's"]),
        (r'["\u00e9"]', ["é"]),
        ("('a', 'b')", ["a", "b"]),
        ("('a',)", ["a"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("[]", []),
        *((text, None) for text in ("a", "", "[0.1, 0.2]", "[unclear]", "('a')", '{"a": "b"}', "'a', 'b'", "[a] b")),
    ],
)  # fmt: skip
def test_a_list_written_as_text(text: str, items: list[str] | None) -> None:
    assert listed(text) == items


@pytest.mark.parametrize("text", ["['a', None]", '["a", 3]', "[['a'], ['b']]", "[{'answer': 'a'}]", "['a', 'b"])
def test_a_list_of_more_than_strings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a list written as text"):
        listed(text)


def put(path: Path, data: str | bytes) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_score_reads_tables(tmp_path: Path, encoding: str) -> None:
    given = put(tmp_path / "p.csv", "sep=;\nid;prediction\n1;fenêtre\n2;a cup\n".encode(encoding))
    held = put(tmp_path / "r.tsv", "Id\ttargets\n1\tporte|fenêtre\n2\t['a cup', 'cup']\n".encode(encoding))
    scored = score_files(given, held, ["exact"])
    assert scored.result["accuracy"] == 1
    assert any("semicolons" in note for note in scored.notes)


def test_score_says_what_is_no_table(tmp_path: Path) -> None:
    held = put(tmp_path / "r.jsonl", '{"id": 1, "targets": "[\'a\', \'b\']"}\n')
    assert score_files(put(tmp_path / "p.csv", "id,prediction\n1,b\n"), held, ["exact"]).result["accuracy"] == 1
    for text in ("just text\nand more\n", "name,words\n1,2\n"):
        with pytest.raises(UserError, match="neither JSON nor a table"):
            score_files(put(tmp_path / "p.txt", text), held, ["exact"])
    with pytest.raises(UserError, match=r"`targets` is a list written as text"):
        score_files(
            str(tmp_path / "p.csv"), put(tmp_path / "r.jsonl", '{"id": 1, "targets": "[\'a\', None]"}\n'), ["exact"]
        )
