"""Conversations on the page: turns, several images, answers that could not be had, and a new beginning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

import perceptune
import runs as dwarf_runs
import support
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from servers import Served, data_url, load_runs, part, png, served, turn

NOTE = "trained on single questions, not on conversations"


@pytest.fixture(scope="module")
def server(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run that takes histories and two images, one that takes histories and one image, one that takes neither."""
    place = tmp_path_factory.mktemp("talking")
    lm, encoder = str(support.save_chat_lm(place / "lm")), str(dwarfs / "encoder")
    limber = {"name": "limber", "connector_std": 2.0, "standardize": False}
    for name, changes in {
        "two": {"lm": lm, "text": {"template": "chat"}, "encoders": {"image": {"id": encoder, "max_media": 2}}},
        "one": {"lm": lm, "text": {"template": "chat"}},
        "plain": {},
    }.items():
        save_run(place / name, perceptune.build({**dwarf_runs.recipe(dwarfs, method=limber), **changes}))
    runs: Runs = load_runs([str(place / name) for name in ("two", "one", "plain")], Limits())
    with served(runs, key=None) as running:
        yield running


def say(page: Any, text: str, answers: int) -> list[str]:
    """The answers of the newest conversation, when there are that many."""
    page.one("#question").send_keys(text, Keys.ENTER)
    page.until(lambda: len(page.all(".exchange:first-child .answer")) == answers and not page.all(".answer.live"))
    return [str(text) for text in page.texts(".exchange:first-child .answer .text")]


def choose(page: Any, name: str, value: str) -> None:
    page.js(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('change'))", name, value,
    )  # fmt: skip


def reply(server: Served, *messages: dict[str, Any], model: str = "two") -> str:
    status, said = server.request("POST", "/v1/chat/completions", {"model": model, "messages": [*messages]})
    assert status == 200, said
    return str(said["choices"][0]["message"]["content"])


def attach(page: Any, color: str, number: int) -> dict[str, Any]:
    page.drop(png(color), f"{color}.png", "image/png")
    page.until(lambda: len(page.all(".tile img")) == number)
    return part(data_url(png(color)))


def test_a_conversation_with_two_images(page: Any, server: Served) -> None:
    red = attach(page, "red", 1)
    asked = [turn("user", red, "what color?")]
    [first] = say(page, "what color?", 1)
    assert first == reply(server, *asked)
    assert page.all(".tile") == []  # it belongs to the first turn
    assert page.one("#question").get_property("value") == ""
    assert NOTE not in page.one(".note").text
    attach(page, "gray", 1)
    page.one(".tile button").click()
    blue = attach(page, "blue", 1)
    asked += [turn("assistant", first), turn("user", blue, "and this?")]
    second = say(page, "and this?", 2)
    assert second == [first, reply(server, *asked)]
    assert NOTE in page.texts(".note")[1]
    assert page.texts(".exchange h3") == ["what color?", "and this?"]
    assert len(page.all(".exchange")) == 1
    assert len(page.all(".exchange .asked img")) == 2
    page.one("#fresh").click()
    assert not page.shown("#fresh")
    assert page.js("return document.activeElement.id") == "question"
    assert say(page, "what color?", 1) == [reply(server, turn("user", "what color?"))]
    assert len(page.all(".exchange")) == 2


def test_as_many_images_are_attached_as_the_run_takes(page: Any, server: Served) -> None:
    assert page.one("#file").get_property("multiple") is True
    red, blue = attach(page, "red", 1), attach(page, "blue", 2)
    page.drop(png("gray"), "gray.png", "image/png")
    page.until(lambda: page.shown("#trouble"))
    assert page.one("#trouble").text == "gray.png is not attached: a question has 2 images at most here."
    assert len(page.all(".tile")) == 2
    assert say(page, "color?", 1) == [reply(server, turn("user", red, blue, "color?"))]
    choose(page, "run", "one")
    assert page.one("#file").get_property("multiple") is False
    assert not page.shown("#fresh")  # another run: another conversation
    attach(page, "red", 1)
    blue = attach(page, "blue", 1)  # in place of the other
    assert say(page, "color?", 1) == [reply(server, turn("user", blue, "color?"), model="one")]
    assert len(page.all(".exchange")) == 2


def test_a_refused_turn_can_be_asked_again(page: Any, server: Served) -> None:
    """It stays in the form and out of the history."""
    choose(page, "run", "one")
    red = attach(page, "red", 1)
    [first] = say(page, "color?", 1)
    attach(page, "blue", 1)
    say(page, "and this?", 2)
    assert "encoders.image.max_media" in page.one(".refusal").text
    assert page.one("#question").get_property("value") == "and this?"
    page.one(".tile button").click()
    asked = [turn("user", red, "color?"), turn("assistant", first), turn("user", "and this?")]
    assert say(page, "", 3)[2] == reply(server, *asked, model="one")


def test_two_runs_have_histories_of_their_own(page: Any, server: Served) -> None:
    choose(page, "other", "one")
    red = attach(page, "red", 1)
    first = say(page, "color?", 2)
    said = say(page, "why?", 4)
    for number, name in enumerate(("two", "one")):
        asked = [turn("user", red, "color?"), turn("assistant", first[number]), turn("user", "why?")]
        assert said[2 + number] == reply(server, *asked, model=name)


def test_a_run_of_single_questions_keeps_what_is_attached(page: Any, server: Served) -> None:
    choose(page, "run", "plain")
    red = attach(page, "red", 1)
    for _ in range(2):
        assert say(page, "color?", 1) == [reply(server, turn("user", red, "color?"), model="plain")]
        page.one("#question").clear()
    assert len(page.all(".exchange")) == 2
    assert page.shown(".tile img")
    assert not page.shown("#fresh")
