"""`perceptune chat`: a conversation in the terminal, as the server answers it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import openai
import pytest

import perceptune
import runs as dwarf_runs
import support
from perceptune.cli.main import run
from perceptune.data.tasks.messages import Messages
from perceptune.lm.generation.prefix_reuse import KnownTexts
from perceptune.models.conversation import Conversation
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from perceptune.types import Mark, Message, Sample
from servers import KEY, data_url, load_runs, part, png, served, turn


@pytest.fixture(scope="module")
def place(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `talker`, with a chat template, and `single`, and two photos."""
    folder = tmp_path_factory.mktemp("chat")
    encoders = {"image": {"id": str(dwarfs / "encoder"), "max_media": 2}}
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    more: dict[str, Any] = {"encoders": encoders, "method": method, "decode": {"max_new_tokens": 6}}
    chat = {"text": {"template": "chat"}, "lm": str(support.save_chat_lm(folder / "lm"))}
    for name, changes in {"talker": {**more, **chat}, "single": more}.items():
        save_run(folder / name, perceptune.build({**dwarf_runs.recipe(dwarfs), **changes}))
    for color in ("red", "green"):
        (folder / f"{color}.png").write_bytes(png(color))
    return folder


def chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: list[str], *words: str
) -> tuple[list[str], str]:
    """What the command prints for these lines of input, and its messages."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    assert run(["chat", *words]) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err


def test_three_turns_with_two_photos(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "what color?",
        f"/image {place / 'green.png'}",
        "and this?",
        "which is lighter?",
        f"/save {place / 'it.json'}",
    ]
    said, notes = chat(
        monkeypatch, capsys, lines, str(place / "talker"), "--image", str(place / "red.png"), "--system", "be kind"
    )
    assert "trained on single questions" in notes
    model = perceptune.load(place / "talker")
    history: list[Message] = [Message("system", "be kind")]
    photos = (place / "red.png", place / "green.png")
    for question, count, answer in zip(("what color?", "and this?", "which is lighter?"), (1, 2, 2), said, strict=True):
        marks = () if question.startswith("which") else (Mark(0, "image"),)
        media = {"image": photos[0] if count == 1 else photos}
        [raw] = model.answer([Sample("question", media, question, marks=marks, history=tuple(history))])
        assert Conversation(model)._clean(raw) == answer
        history += [Message("user", question, marks), Message("assistant", answer)]
    options = Messages.Options(train=place / "it.json", turns="all")
    [row] = json.loads((place / "it.json").read_text())
    assert [turn["role"] for turn in row["messages"]] == ["system", *["user", "assistant"] * 3]
    assert row["images"] == [str(photo) for photo in photos]
    [read] = Messages(options).samples("train")
    assert (read.prompt, read.history[:2], read.list_media("image")) == (
        "which is lighter?",
        tuple(history[:2]),
        photos,
    )


def test_reset_forgets_and_mistakes_change_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = f"/image {place / 'red.png'}"
    lines = [photo, "what color?", "and why?", "/reset", "/imege x", f"/image {place / 'none.png'}", "/save", "/save x",
             photo, photo, photo, "too many", "/reset", photo, "what color?"]  # fmt: skip
    said, notes = chat(monkeypatch, capsys, lines, str(place / "talker"))
    assert len(said) == 3
    assert said[0] == said[2]
    for mistake in (
        "unknown command `/imege`; did you mean `/image`?", "none.png: no such file", "name a file",
        "it has no turns", "error: the conversation has 3 media of modality image, more than",
        "the attached files are kept: /detach drops them",
    ):  # fmt: skip
        assert mistake in notes
    assert len(notes.splitlines()) == 6


def test_a_run_for_single_questions_answers_each_by_itself(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = f"/image {place / 'red.png'}"
    said, notes = chat(
        monkeypatch,
        capsys,
        [photo, "what color?", photo, "what color?", "/save x", "/exit", "x"],
        str(place / "single"),
    )
    assert len(said) == 2
    assert said[0] == said[1]
    assert "takes single questions" in notes
    assert "/save FILE writes the conversation: this run's questions are answered by themselves" in notes
    assert run(["chat", str(place / "single"), "--system", "x"]) == 2
    assert "takes no system message: it needs `text.template: chat`" in capsys.readouterr().err


@pytest.mark.parametrize("megabytes", [0, 64])
def test_the_server_answers_as_the_terminal_does(
    place: Path, megabytes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenAI's client, three turns and two photos, with and without reuse on either side."""
    photos = {color: place / f"{color}.png" for color in ("red", "green")}
    lines = ["what color?", f"/image {photos['green']}", "and this?", "which is lighter?"]
    words = [str(place / "talker"), "--image", str(photos["red"]), "--reuse-mb", str(64 - megabytes)]
    said, _ = chat(monkeypatch, capsys, lines, *words)
    messages: list[Any] = []
    with served(load_runs([str(place / "talker")], Limits()), Limits(reuse_mb=megabytes)) as running:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key=KEY)
        for question, color in (("what color?", "red"), ("and this?", "green"), ("which is lighter?", None)):
            photo = [part(data_url(photos[color].read_bytes()))] if color else []
            messages.append(turn("user", *photo, question))
            answer = client.chat.completions.create(model="talker", messages=messages).choices[0].message.content
            messages.append(turn("assistant", answer))
            assert answer == said[len(messages) // 2 - 1]


def test_detach_drops_files_and_keeps_the_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "text.png").write_text("no image")
    photo, broken = (f"/image {place / name}.png" for name in ("red", "text"))
    lines = [photo, "what color?", broken, "and this?", "/detach", "and why?"]
    said, notes = chat(monkeypatch, capsys, lines, str(place / "talker"))
    expected, _ = chat(monkeypatch, capsys, [photo, "what color?", "and why?"], str(place / "talker"))
    assert said == expected
    assert "not an image" in notes


def test_saved_files_are_found_from_any_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    talk = Conversation(perceptune.load("talker"))
    talk.ask("what color?", [("image", "red.png")])
    assert talk.to_row()["images"] == [str(place / "red.png")]


@pytest.mark.parametrize("given", ["-1", "nan", "much"])
def test_memory_for_reuse_is_a_number_of_at_least_0(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["chat", "none", f"--reuse-mb={given}"])
    assert f"`{given}` is not a number of at least 0" in capsys.readouterr().err


def test_memory_for_reuse_may_be_unlimited() -> None:
    assert KnownTexts(float("inf")).size == 0
