"""`perceptune data`: what it prints and exits with, and the line from made-up data to a trained run."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import planted
import sounds
from perceptune.cli.main import run as cli

Said = Callable[[], tuple[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(planted.desk(tmp_path / "desk"))
    return tmp_path / "desk"


def write(desk: Path, *rows: bytes) -> None:
    (desk / "my.jsonl").write_bytes(b"\n".join(rows))


def test_check_exits_by_what_it_finds(desk: Path, said: Said) -> None:
    write(desk, planted.text(planted.good(0)), planted.text(planted.good(1)))
    assert cli(["data", "check", "my.jsonl"]) == 0
    out, err = said()
    assert out.endswith("no mistakes found\n")
    assert "2 distinct in 2 rows; bytes" in out
    assert err.startswith("my.jsonl: JSON lines (--task jsonl): 2 samples with 2 images, questions")
    assert err.count("\n") == 1
    write(desk, planted.text(planted.good(0)), *(planted.planted("no-targets", n) for n in range(1, 8)))
    assert cli(["data", "check", "my.jsonl", "--first", "2"]) == 1
    out, _ = said()
    assert "no-targets: 7 (no answer to learn)\n  my.jsonl, line 2: `targets` is empty\n" in out
    assert "  ... and 5 more\n7 mistakes\n" in out
    assert cli(["data", "check", "my.jsonl", "--json"]) == 1
    assert json.loads(said()[0])["problems"]["no-targets"]["count"] == 7
    assert cli(["data", "check", "mine.jsonl"]) == 2
    out, err = said()
    assert (out, err) == ("", "error: no file and no recipe `mine.jsonl`; did you mean `my.jsonl`?\n")
    assert cli(["data", "check", "my.jsonl", "task.allow_empty_prompt=true", "--first", "-1"]) == 2


def test_nothing_of_the_data_steers_the_terminal(desk: Path, said: Said) -> None:
    write(desk, planted.text(planted.good(0, targets=["\x1b[2J\x1b]0;title\x07"], image="\x1b[31m.png")))
    assert cli(["data", "check", "my.jsonl"]) == 1
    out, _ = said()
    assert "\\x1b[2J" in out
    assert not re.search(r"[^\n -~]", out)
    image = planted.good(0)["image"]
    row = {"\x1b[2Jpicture": image, "question": "what?", "answer": "a"}
    two = {"\x1b[2Jother": image}
    for words, change in (["data", "check", "my.jsonl"], {}), (["train", "--data", "my.jsonl"], two):
        write(desk, json.dumps({**row, **change}).encode())
        assert cli(words) == 2 * len(change)
        _, err = said()
        assert "\\x1b[2J" in err
        assert not re.search(r"[^\n -~]", err)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(desk: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    write(desk, planted.text(planted.good(0, prompt="\U0001f436 \u00e9?", targets=["\u732b"])))
    for command in (["data", "check", "my.jsonl"], ["data", "check", "caf\udce9.jsonl"]):
        shown = io.BytesIO()
        stream = io.TextIOWrapper(shown, encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli(command) == (0 if "my.jsonl" in command else 2)
        stream.flush()
        text = shown.getvalue().decode(encoding)
        if encoding == "ascii":
            assert "\\U0001f436" in text or "caf\\udce9" in text


class Page(HTMLParser):
    """Tags and addresses of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_page_loads_nothing_and_runs_nothing(desk: Path, said: Said) -> None:
    evil = '"><script>alert(1)</script><img src=https://example.org/x onerror=alert(1)>'
    (desk / "low.wav").write_bytes(sounds.encoded(sounds.tone()))
    write(
        desk,
        planted.text(planted.good(0, prompt=evil, targets=[evil], id=evil)),
        planted.text(planted.good(1, image=planted.BROKEN)),
        planted.text(planted.good(2, image=None, audio="low.wav")),
        planted.text(planted.good(3, image=evil)),
    )
    assert cli(["data", "check", "my.jsonl", "--html", "page.html"]) == 1
    page = Page((desk / "page.html").read_text(encoding="utf-8"))
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert page.tags.count("img") == 2, "a picture and the loudness of a sound"
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert evil in page.words
    assert "broken-medium" in page.words
    said()


def test_convert_says_what_comes_next(desk: Path, said: Said) -> None:
    write(desk, planted.text(planted.good(0)))
    assert cli(["data", "convert", "my.jsonl", "--to", "out.jsonl.gz"]) == 0
    assert said()[0] == "1 rows: out.jsonl.gz\nnext:  perceptune data check out.jsonl.gz\n"
    assert cli(["data", "check", "out.jsonl.gz"]) == 0
    assert "1 rows (gzipped)" in said()[0]
    assert cli(["data", "convert", "jsonl", "task.train=my.jsonl", "--to", "o.jsonl"]) == 0
    assert cli(["data", "convert", "jsonl", "--to", "o.jsonl", "task.train=my.jsonl", "--split", "tset"]) == 2


@pytest.mark.parametrize("modality", ["image", "audio", "video", "all"])
def test_made_up_data_can_be_trained_on(modality: str, desk: Path, dwarfs: Path, said: Said) -> None:
    given = [] if modality == "image" else ["--modality", modality]
    assert cli(["data", "demo", "made", *given]) == 0
    assert said()[0] == "next:  perceptune train made/recipe.yaml\n"
    encoders = ["image", "audio", "video"] if modality == "all" else [modality]
    models = [f"lm.id={dwarfs / 'lm'}", *(f"encoders.{name}.id={dwarfs / 'encoder'}" for name in encoders)]
    small = ["method.n_levels=2", "train.steps=2", "train.batch_size=4", "train.samples=60"]
    sizes = [f"encoders.{name}.size=16" for name in encoders if name != "audio"]
    arguments = [*models, *small, *sizes, "train.standardize_samples=8", "train.warmup_steps=0"]
    assert cli(["train", "made/recipe.yaml", "--run", "run", *arguments]) == 0
    assert cli(["eval", "run", "eval.samples=24"]) == 0
    assert "24 samples of split `test`" in said()[0]
    assert cli(["data", "check", "made/recipe.yaml", "--no-tokens"]) == 0


def test_pictures_of_a_page_are_small(desk: Path, said: Said) -> None:
    Image.effect_noise((3000, 2000), 90).save(desk / "a.png")
    write(desk, *(planted.text(planted.good(2 * n)) for n in range(40)))
    assert cli(["data", "check", "my.jsonl", "--html", "page.html", "--samples", "10"]) == 0
    assert (desk / "page.html").stat().st_size < 10 * 20_000
    said()
