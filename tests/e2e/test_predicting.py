"""Answers in bulk: every row once, through kills and broken files, and the same as `answer` gives."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import perceptune
from forks import Fork
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.evaluation import batch_predict
from perceptune.evaluation.batch_predict import predict
from runs import recipe
from web import HOST, MediaWeb


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("predicting") / "run"
    perceptune.train(recipe(dwarfs), run)
    return run


@pytest.fixture
def questions(dwarfs: Path, tmp_path: Path) -> Path:
    """The dwarfs' data in a folder of its own, twice over."""
    folder = shutil.copytree(dwarfs / "data", tmp_path / "data")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    again = [{**row, "id": i, "prompt": "which?"} for i, row in enumerate(rows)]
    (folder / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *again]))
    return folder / "ask.jsonl"


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_answered_as_alone(trained: Path, questions: Path, tmp_path: Path) -> None:
    done = predict(trained, questions, tmp_path / "out.jsonl", batch_size=5)
    rows = rows_in(done.out)
    assert (done.rows, done.errors, len(rows)) == (24, 0, 24)
    assert [row["id"] for row in rows[::12]] == ["row-000001", "0"]
    model = perceptune.load(trained)
    for row in rows[::7]:
        sample = perceptune.Sample("x", {"image": Path(row["media"]["image"])}, row["prompt"])
        assert model.answer([sample]) == [row["raw"]]
    assert rows[0]["targets"] == ["red"]
    assert rows[0]["meta"] == {"answer_type": "color"}


def test_what_is_broken_is_said_in_its_row_and_the_others_lose_nothing(
    trained: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = predict(trained, questions, tmp_path / "whole.jsonl").out
    lines = questions.read_text().splitlines()
    lines[3] = "{not JSON"
    lines[17] = json.dumps({**json.loads(lines[17]), "audio": "a.wav"})
    questions.write_text("\n".join(lines))
    (questions.parent / "train1.png").write_bytes(b"not a picture")
    (questions.parent / "train2.png").unlink()
    out = tmp_path / "out.jsonl"
    assert cli(["predict", str(trained), str(questions), "--out", str(out), "--batch-size", "5"]) == 1
    assert "6 of them could not be answered" in capsys.readouterr().out
    broken = {}
    for one, two in zip(rows_in(whole), rows_in(out), strict=True):
        if "error" in two:
            broken[two["id"]] = two["error"]
            assert "answer" not in two
        else:
            assert one == two
    assert [*broken] == ["row-000002", "row-000003", "row-000004", "1", "2", "5"]
    assert "train1.png: not an image" in broken["row-000002"]
    assert "train2.png: no such file" in broken["2"]
    assert "line 4: invalid JSON" in broken["row-000004"]
    assert "no encoder" in broken["5"]


def test_a_folder_of_files_is_asked_one_question(
    trained: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = questions.parent
    for name in ("sub", "__MACOSX", ".hidden"):
        (folder / name).mkdir()
    for name in ("__MACOSX/a.png", ".hidden/a.png", "._train1.png", "sub/notes.xyz"):
        (folder / name).write_bytes(b"x")
    (folder / "train3.png").rename(folder / "sub/a.PNG")
    with pytest.raises(UserError, match="give --prompt"):
        predict(trained, folder)
    done = predict(trained, folder, prompt="color?")
    assert done.out == trained / "predicted_data.jsonl"
    passed = r"passed over: .*1 \.xyz, 1 hidden or system file, 2 hidden or system folders\n$"
    assert re.search(passed, capsys.readouterr().err)
    rows = rows_in(done.out)
    assert [row["id"] for row in rows] == [*sorted(f"train{i}.png" for i in range(12) if i != 3), "sub/a.PNG"]
    assert {row["prompt"] for row in rows} == {"color?"}
    [row] = rows_in(predict(trained, folder / "sub/a.PNG", tmp_path / "one.jsonl", prompt="color?").out)
    assert row["raw"] == rows[-1]["raw"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file that ends in \.jpg, .*, \.gif$"):
        predict(trained, tmp_path / "empty", prompt="color?")


def test_it_goes_on_where_it_was_stopped_at_any_byte(
    trained: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portions: list[list[str]] = []
    original = batch_predict._lines

    def noted(model: Any, task: Any, portion: Any) -> Any:
        portions.append([asked.id for asked in portion])
        return original(model, task, portion)

    monkeypatch.setattr(batch_predict, "_lines", noted)
    whole = predict(trained, questions, tmp_path / "whole.jsonl", batch_size=5).out.read_bytes()
    ends = list(itertools.accumulate(len(line) for line in whole.splitlines(keepends=True)))
    uninterrupted = portions[:]
    for cut in (0, 7, ends[0], ends[6], ends[6] + 30, ends[-1] - 1, ends[-1]):
        out = tmp_path / f"{cut}.jsonl"
        shutil.copy(tmp_path / "whole.jsonl.meta.json", tmp_path / f"{cut}.jsonl.meta.json")
        out.write_bytes(whole[:cut])
        portions.clear()
        done = predict(trained, questions, out, batch_size=3 if cut else 5)
        assert portions == uninterrupted[len(uninterrupted) - len(portions) :], "those it was begun with"
        assert out.read_bytes() == whole
        assert done.resumed_at == whole[:cut].count(b"\n")


def test_a_kill_loses_nothing(trained: Path, questions: Path, tmp_path: Path) -> None:
    whole = predict(trained, questions, tmp_path / "whole.jsonl", batch_size=1).out.read_bytes()
    out = tmp_path / "killed.jsonl"
    words = ["predict", str(trained), str(questions), "--out", str(out), "--batch-size", "1"]
    append = batch_predict._append

    def go_on() -> int:
        batch_predict._append = lambda *given: (append(*given), time.sleep(0.2))[0]
        return cli(words)

    with Fork(go_on):
        for _ in range(6000):
            if out.is_file() and out.read_bytes().count(b"\n") >= 3:
                break
            time.sleep(0.05)
    assert 3 <= out.read_bytes().count(b"\n") < 24
    assert cli(words) == 0
    assert out.read_bytes() == whole


def test_rows_of_something_else_are_not_mixed(trained: Path, questions: Path, tmp_path: Path) -> None:
    out = predict(trained, questions, tmp_path / "out.jsonl").out
    with pytest.raises(UserError, match="begun with another `decoding`"):
        predict(trained, questions, out, overrides=["decode.max_new_tokens=2"])
    with pytest.raises(UserError, match="begun with another `prompt`"):
        predict(trained, questions, out, prompt="what?")
    text = questions.read_text()
    questions.write_text(text.replace('"id": 3', '"id": "three"'))
    with pytest.raises(UserError, match="holds an answer to `3` where `three` is asked"):
        predict(trained, questions, out)
    questions.write_text("".join(text.splitlines(keepends=True)[:20]))
    with pytest.raises(UserError, match=r"holds 24 rows, but .* has 20"):
        predict(trained, questions, out)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was not written by `predict`"):
        predict(trained, questions, tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "{}\n"


def test_the_input_is_read_a_portion_at_a_time(
    trained: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of row n is asked for before the rows of earlier portions are written."""
    asked = [0]
    ahead = []
    original, append = batch_predict.id_of, batch_predict._append

    def counted(*given: Any) -> str:
        asked[0] += 1
        return original(*given)

    def noted(target: Path, lines: Any) -> None:
        append(target, lines)
        ahead.append(asked[0] - len(rows_in(target)))

    monkeypatch.setattr(batch_predict, "id_of", counted)
    monkeypatch.setattr(batch_predict, "_append", noted)
    predict(trained, questions, tmp_path / "out.jsonl", batch_size=4)
    assert ahead == [0] * 6


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("song.flac", b"fLaC" + bytes(99), "a FLAC audio file"), ("file.pdf", b"%PDF-1.7\n" * 9, "a PDF file"),
        ("archive.zip", b"PK\3\4" + bytes(99), "a zip file"), ("photo.xyz", b"II*\0" + bytes(99), "a TIFF image"),
        ("rows.jsonl", b"PAR1" * 9, "a parquet file"), ("notes.md", b"# Notes\n", "a text"),
        ("page.json", b"\1\0\2" * 9, "a binary file of an unknown type"), ("page", b"<html>", "a web page"),
        ("rows.jsonl.gz", gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(99), mtime=0), "a PNG image"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_one_error_that_names_it(
    name: str, data: bytes, what: str, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is {what}.*: neither JSON lines nor, .* this run takes \(image\)"):
        predict(trained, tmp_path / name, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_are_known_by_their_name_or_their_first_character(trained: Path, questions: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("asked.txt", "asked")):
        shutil.copy(questions, questions.parent / name)
        assert predict(trained, questions.parent / name, tmp_path / f"{number}.jsonl").errors == 0
    (questions.parent / "bad.jsonl").write_text("not JSON\n")
    done = predict(trained, questions.parent / "bad.jsonl", tmp_path / "bad.jsonl")
    assert (done.rows, done.errors) == (1, 1)


def test_media_at_addresses(
    trained: Path, questions: Path, tmp_path: Path, web: MediaWeb, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.loads(questions.read_text().splitlines()[0])
    web.files["/a.png"] = (questions.parent / row["image"]).read_bytes()
    asked = [row, {**row, "image": f"{HOST}/a.png"}, {**row, "image": f"{HOST}/404"}]
    questions.write_text("".join(json.dumps(one) + "\n" for one in asked))
    command = ["predict", str(trained), str(questions), "--out"]
    assert cli([*command, str(tmp_path / "without.jsonl")]) == 1
    assert ["--fetch-media" in one.get("error", "") for one in rows_in(tmp_path / "without.jsonl")] == [
        False,
        True,
        True,
    ]
    assert not web.asked
    assert cli([*command, str(tmp_path / "out.jsonl"), "--fetch-media"]) == 1
    here, there, nowhere = rows_in(tmp_path / "out.jsonl")
    assert here["raw"] == there["raw"]
    assert nowhere["error"] == f"{HOST}/404: it answered with status 404"
    assert "1 medium fetched; 1 medium cannot be fetched" in capsys.readouterr().err
