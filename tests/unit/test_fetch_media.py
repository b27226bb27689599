"""Media at addresses in rows: refused by default, fetched once on request, failures counted and listed."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from forks import Fork
from perceptune.config.registry import leaf
from perceptune.data.media import remote_media
from perceptune.data.media.source import open_image
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.tools.datasets.convert import convert
from perceptune.tools.datasets.validate import CheckOptions, validate_dataset
from perceptune.utils import downloads
from web import HOST, MediaWeb

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def _pictures(web: MediaWeb) -> None:
    web.files |= {f"/{number}.png": picture(number) for number in range(9)}


def picture(red: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def rows(folder: Path, *names: str, **more: Any) -> Path:
    path = folder / "rows.jsonl"
    lines = [{"image": name, "prompt": "What?", "targets": f"a {n}", **more} for n, name in enumerate(names)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def task(name: str, **options: Any) -> Task:
    kind = leaf("tasks", name).module.TASK
    made: Task = kind(kind.Options(**options))
    return made


def reds(samples: Any) -> list[int]:
    return [open_image(sample.media["image"]).getpixel((0, 0))[0] for sample in samples]  # type: ignore[index]


def test_without_the_flag_an_address_is_an_error_that_names_it(tmp_path: Path, web: MediaWeb) -> None:
    path = rows(tmp_path, f"{HOST}/1.png")
    with pytest.raises(UserError, match=r"line 1: `image` is an address.*`--fetch-media`"):
        task("jsonl", train=path).samples("train")
    checked = validate_dataset(str(path))
    assert list(checked.report["problems"]) == ["address"]
    assert not web.asked
    with pytest.raises(UserError, match=r"is an address, not a file: s3://b/1\.png"):
        task("jsonl", train=rows(tmp_path, "s3://b/1.png"), fetch_media=True).samples("train")


def test_each_address_is_fetched_once(tmp_path: Path, web: MediaWeb, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here.png").write_bytes(picture(7))
    names = [f"{HOST}/1.png", f"{HOST}/2.png", f"{HOST}/1.png", "here.png"]
    path = rows(tmp_path, *names)
    samples = task("jsonl", train=path, fetch_media=True).samples("train")
    assert reds(samples) == [1, 2, 1, 7]
    assert web.asked == {"/1.png": 1, "/2.png": 1}
    assert f"{path}: 2 media fetched" in capsys.readouterr().err
    again = task("jsonl", train=rows(tmp_path, names[0], f"{HOST}/3.png"), fetch_media=True)
    assert reds(again.samples("train")) == [1, 3]
    assert web.asked["/1.png"] == 1
    assert reds(again.samples("train")) == [1, 3]


def test_an_address_keeps_its_query_and_gets_its_escapes(tmp_path: Path, web: MediaWeb) -> None:
    web.files |= {"/a%20b": picture(5), "/%C3%BC.jpg": picture(6)}
    path = rows(tmp_path, f"{HOST}/a b?x=1#part", f"{HOST}/ü.jpg", f"{HOST}/a%20b")
    assert reds(task("jsonl", train=path, fetch_media=True).samples("train")) == [5, 6, 5]
    assert web.asked == {"/a%20b?x=1": 1, "/%C3%BC.jpg": 1, "/a%20b": 1}


FAILURES = {
    "/404": "status 404", "/page": r"a web page \(HTML\)", "/empty": "it is empty", "/sound.wav": "a WAV audio file",
    "/large": "larger than 1,048,576 bytes",
}  # fmt: skip


def failing(web: MediaWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote_media.MAX_MIB, "image", 1)
    web.files |= {
        "/page": b"<!doctype html>",
        "/empty": b"",
        "/sound.wav": b"RIFF\0\0\0\0WAVE",
        "/large": bytes(2**20 + 1),
    }


def test_failures_are_one_error_with_the_first_and_their_number(
    tmp_path: Path, web: MediaWeb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(web, monkeypatch)
    for place, why in FAILURES.items():
        with pytest.raises(UserError, match=rf"rows\.jsonl: 1 medium cannot be fetched: {HOST}{place}: .*{why}"):
            task("jsonl", train=rows(tmp_path, f"{HOST}{place}"), fetch_media=True).samples("train")
    path = rows(tmp_path, f"{HOST}/1.png", *(f"{HOST}{place}" for place in FAILURES), f"{HOST}/404")
    with pytest.raises(UserError, match=r"5 media cannot be fetched: .*; and 2 more \(of 6\); start again"):
        task("jsonl", train=path, fetch_media=True, skip_missing=4).samples("train")
    capsys.readouterr()
    assert reds(task("jsonl", train=path, fetch_media=True, skip_missing=5).samples("train")) == [1]
    told = capsys.readouterr().err
    assert f"{path}: 0 media fetched; 5 media cannot be fetched: {HOST}/404: it answered with status 404; " in told
    assert "train: 5 media are missing; 6 samples are left out" in told


def test_addresses_inside_are_not_connected_to(tmp_path: Path, web: MediaWeb) -> None:
    web.addresses = ["10.0.0.1"]
    with pytest.raises(UserError, match="this address is not allowed here"):
        task("jsonl", train=rows(tmp_path, f"{HOST}/1.png"), fetch_media=True).samples("train")
    assert not web.asked


def test_a_wrong_row_is_found_before_all_are_fetched(tmp_path: Path, web: MediaWeb) -> None:
    path = rows(tmp_path, *(f"{HOST}/{number}.png" for number in range(9)))
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match="line 10: no key"):
        task("jsonl", train=path, fetch_media=True).samples("train")
    assert not web.asked


def test_check_counts_what_cannot_be_fetched(tmp_path: Path, web: MediaWeb) -> None:
    path = rows(tmp_path, f"{HOST}/1.png", f"{HOST}/404", "")
    checked = validate_dataset(str(path), ["task.fetch_media=true"], options=CheckOptions(decode=True))
    found = checked.report["problems"]
    assert {kind: one["count"] for kind, one in found.items()} == {"empty-medium": 1, "missing-medium": 1}
    assert f"line 2: `image`: {HOST}/404: it answered with status 404" in found["missing-medium"]["first"][0]
    assert checked.report["splits"]["train"]["media"]["image"]["distinct"] == 2


@pytest.mark.parametrize("name", ["csv", "json", "messages", "llava", "folder"])
def test_every_reader_of_names_fetches(name: str, tmp_path: Path, web: MediaWeb) -> None:
    place = f"{HOST}/4.png"
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a cat"}]
    said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a cat"}]
    parts = [{"type": "image_url", "image_url": {"url": place}}, {"type": "text", "text": "What?"}]
    text = {
        "csv": f"image,prompt,targets\n{place},What?,a cat\n",
        "json": json.dumps([{"image": place, "prompt": "What?", "targets": "a cat"}]),
        "messages": json.dumps({"messages": turns, "images": [place]})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": parts}, turns[1]]})
        + "\n",
        "llava": json.dumps([{"image": place, "conversations": said}]),
        "folder": json.dumps({"file_name": place, "prompt": "What?", "text": "a cat"}) + "\n",
    }[name]
    path = tmp_path / {"csv": "t.csv", "folder": "metadata.jsonl"}.get(name, "t.json")
    path.write_text(text)
    given = tmp_path if name == "folder" else path
    with pytest.raises(UserError, match=r"is an address.*--fetch-media"):
        task(name, train=given).samples("train")
    assert {*reds(task(name, train=given, fetch_media=True).samples("train"))} == {4}
    assert web.asked == {"/4.png": 1}


def test_data_sets_of_the_hub_fetch(web: MediaWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    places = [f"{HOST}/4.png", f"{HOST}/5.png"]
    data = datasets.Dataset.from_dict({"image": places, "prompt": ["What?"] * 2, "targets": ["a"] * 2})
    for kind in (data, data.cast_column("image", datasets.Image())):
        monkeypatch.setattr("perceptune.data.tasks.hf_dataset.load", lambda *_, kind=kind: kind)
        options = {"path": "some", "image_key": "image"}
        with pytest.raises(UserError, match=r"row 0: `image` is an address.*--fetch-media"):
            _ = [*task("hf-dataset", **options).samples("train")]
        assert reds(task("hf-dataset", **options, fetch_media=True).samples("train")) == [4, 5]
    assert web.asked == {"/4.png": 1, "/5.png": 1}


def test_invalid_addresses_of_a_data_set_are_left_out_within_its_budget(
    web: MediaWeb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    places = [f"{HOST}/4.png", f"{HOST}/404", "s3://bucket/5.png", f"{HOST}/5.png"]
    data = datasets.Dataset.from_dict({"image": places, "prompt": ["What?"] * 4, "targets": ["a"] * 4})
    monkeypatch.setattr("perceptune.data.tasks.hf_dataset.load", lambda *_: data)
    options = {"path": "some", "image_key": "image", "fetch_media": True}
    with pytest.raises(UserError, match=rf"row 1: {HOST}/404: it answered with status 404"):
        task("hf-dataset", **options, skip_invalid=1).samples("train")
    assert reds(task("hf-dataset", **options, skip_invalid=2).samples("train")) == [4, 5]
    assert "row 2: `image` is an address, not a file: s3://bucket/5.png" in capsys.readouterr().err
    found = [*task("hf-dataset", **options).examine("train").rows]
    assert len(found) == 4
    assert web.asked == {"/4.png": 1, "/404": 3, "/5.png": 1}


def test_converted_rows_need_a_folder_for_fetched_media(tmp_path: Path, web: MediaWeb) -> None:
    path = rows(tmp_path, f"{HOST}/4.png")
    fetch = ["task.fetch_media=true"]
    with pytest.raises(UserError, match="its image lies in the cache: give `--media DIR`"):
        convert(str(path), tmp_path / "out.jsonl", fetch)
    assert convert(str(path), tmp_path / "out.jsonl", fetch, media=tmp_path / "media") == 1
    assert reds(task("jsonl", train=tmp_path / "out.jsonl").samples("train")) == [4]
    assert web.asked == {"/4.png": 1}


def test_several_processes_fetch_each_address_once(tmp_path: Path, web: MediaWeb) -> None:
    path = rows(tmp_path, *(f"{HOST}/{number}.png" for number in range(9)))

    def work() -> int:
        return int(reds(task("jsonl", train=path, fetch_media=True).samples("train")) != [*range(9)])

    (downloads.cache_dir() / "media" / "aa").mkdir(parents=True)
    children = [Fork(work) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert {*web.asked.values()} == {1}


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, web: MediaWeb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "file"
    place.touch()
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(place / "cache"))
    path = rows(tmp_path, f"{HOST}/1.png", f"{HOST}/2.png")
    assert reds(task("jsonl", train=path, fetch_media=True).samples("train")) == [1, 2]
    assert "until this process ends" in capsys.readouterr().err
    assert web.asked == {"/1.png": 1, "/2.png": 1}
