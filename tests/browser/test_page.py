"""Asking on the page: by keyboard, of one run and of two, with answers that stream and can be stopped."""

from __future__ import annotations

import base64
import threading
from itertools import pairwise
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from servers import KEY, Served, data_url, part, png, served

RED = png("red")


def answer(server: Served, question: str, model: str = "one", picture: bytes | None = None, **more: Any) -> str:
    """What the server says to any client."""
    content = [{"type": "text", "text": question}, *([] if picture is None else [part(data_url(picture))])]
    body = {"model": model, "messages": [{"role": "user", "content": content}], **more}
    status, reply = server.request("POST", "/v1/chat/completions", body)
    assert status == 200, reply
    return str(reply["choices"][0]["message"]["content"])


def press(page: Any, *keys: str) -> None:
    ActionChains(page.driver, duration=0).send_keys(*keys).perform()


def focused(page: Any) -> str:
    return str(page.js("const a = document.activeElement; return a.id || a.className || a.tagName"))


def ask(page: Any, question: str) -> None:
    box = page.one("#question")
    box.clear()
    box.send_keys(question, Keys.ENTER)


def choose(page: Any, name: str, value: str) -> None:
    page.js(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('change'))", name, value,
    )  # fmt: skip


def test_asking_by_keyboard_alone(page: Any, server: Served) -> None:
    """From the top of the page to an answer of the second run, in the order in which things stand."""
    order = []
    while not order or order[-1] != "go":
        press(page, Keys.TAB)
        order.append(focused(page))
        assert page.js("return getComputedStyle(document.activeElement).outlineStyle") != "none" or order[-1] == "file"
        if order[-1] == "run":
            press(page, Keys.ARROW_DOWN)
        if order[-1] == "question":
            press(page, "color?")
    assert order == ["skip", "file", "camera-open", "record", "run", "other", "question", "go"]
    press(page, Keys.ENTER)
    assert page.answered() == [answer(server, "color?", "two")]
    assert page.texts(".exchange h3") == ["color?"]
    assert page.texts(".answer h4") == ["two"]
    assert page.one(".answer .text").get_attribute("aria-live") == "polite"
    assert page.one(".answer .text").get_attribute("aria-busy") == "false"
    assert page.one("#status").text == "Done."
    assert focused(page) == "go"


def test_the_skip_link_leads_to_the_question(page: Any) -> None:
    press(page, Keys.TAB)
    press(page, Keys.ENTER)
    press(page, Keys.TAB)
    assert focused(page) in ("question", "go")  # a fragment moves where Tab goes on, or the focus itself


def test_an_answer_streams_and_can_be_stopped(page: Any, server: Served, slow: None) -> None:
    page.js(
        "window.seen = []; new MutationObserver(() => seen.push(document.querySelector('.answer .text')?.textContent))"
        ".observe(document.getElementById('exchanges'), { childList: true, subtree: true })"
    )
    page.one(".ask details summary").click()
    page.one("#tokens").send_keys("60")
    ask(page, "color?")
    page.until(lambda: page.js("return new Set(seen).size") > 4)
    assert page.one(".answer .text").get_attribute("aria-busy") == "true"
    ask(page, "one more?")  # is not asked: the first one is not answered yet
    assert len(page.all(".exchange")) == 1
    page.one("#stop").click()
    [said] = page.answered()
    assert page.one(".answer .note").text.startswith("stopped after ")
    assert server.settles("requests_admitted", 0)
    seen = page.js("return seen")
    assert all(after.startswith(before or "") for before, after in pairwise(seen))
    assert 0 < len(said) < 60
    assert said == answer(server, "color?", max_tokens=60)[: len(said)]
    assert focused(page) == "question"
    ask(page, "color?")
    page.until(lambda: page.all(".exchange:first-child .answer.live"))
    press(page, Keys.ESCAPE)
    page.answered(2)


def test_two_runs_answer_side_by_side(page: Any, server: Served, slow: None) -> None:
    choose(page, "other", "two")
    page.drop(RED, "red.png", "image/png")
    page.until(lambda: page.shown(".tile img"))
    before = len(page.requested())
    ask(page, "color?")
    page.until(lambda: len(page.all(".answer.live")) == 2)
    assert (
        sum(one.endswith("/v1/chat/completions") for one in page.requested()[before:]) == 2
    )  # both before the first has ended
    expected = [answer(server, "color?", name, RED) for name in ("one", "two")]
    assert page.answered() == expected
    assert len({*expected, answer(server, "color?")}) == 3
    boxes = [one.rect for one in page.all(".answer")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_what_a_model_or_a_user_writes_is_never_code(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = '<img src=x onerror="window.broken = 1"><script>window.broken = 1</script>'
    monkeypatch.setattr("perceptune.serving.streaming.content", lambda job: code)
    monkeypatch.setattr("perceptune.serving.streaming.sure", lambda job, told: told)
    ask(page, f"{code}?")
    assert page.answered() == [code]
    assert page.texts(".exchange h3") == [f"{code}?"]
    assert page.all(".exchange :is(img, script)") == []
    assert page.js("return window.broken") is None


def test_no_code_inside_a_page_would_run(page: Any) -> None:
    """The second lock: even what got into the document as markup."""
    page.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')")
    said: list[str] = []  # that there is no such picture, and that its handler may not run, in whatever order

    def both_said() -> bool:
        said.extend(page.complaints())
        return len(said) >= 2

    page.until(both_said)
    assert any("Content Security Policy" in one for one in said)
    assert page.js("return window.broken") is None


def test_refusals_are_told_in_the_server_s_words(page: Any, server: Served) -> None:
    broken = b"\x89PNG\r\n\x1a\n" + bytes(40)
    page.drop(broken, "broken.png", "image/png")
    page.until(lambda: page.shown(".tile"))
    ask(page, "color?")
    page.answered()
    status, reply = server.chat(media=[part(data_url(broken))])
    assert page.one(".refusal").text == f"Refused with status {status}: {reply['error']['message']}"
    assert page.one(".refusal").get_attribute("role") == "alert"
    page.one("#question").clear()
    page.one("#go").click()
    assert page.one("#trouble").text == "Write a question first."


def test_a_key_is_asked_for_and_stays_in_the_tab(window: Any, loaded: Runs) -> None:
    with served(loaded) as server:
        page = window.open(server.base)
        assert page.shown("#lock")
        assert not page.shown("#ask")
        assert not page.shown("#trouble")
        assert focused(page) == "key"
        assert page.one("#key").get_attribute("type") == "password"
        press(page, "wrong", Keys.ENTER)
        page.until(lambda: page.shown("#trouble"))
        assert "wrong or missing API key" in page.one("#trouble").text
        assert "401" in page.one("#trouble").text
        press(page, KEY, Keys.ENTER)
        page.until(lambda: page.shown("#ask"))
        assert focused(page) == "question"
        ask(page, "color?")
        assert page.answered() == [answer(server, "color?")]
        page.js("sessionStorage.setItem('perceptune-key', 'old')")  # the server was started anew with another key
        ask(page, "color?")
        page.until(lambda: page.shown("#lock"))
        press(page, KEY, Keys.ENTER)
        page.until(lambda: page.shown("#ask"))
        assert len(page.all("#run option")) == len(loaded)
        page.driver.refresh()
        page.until(lambda: page.shown("#ask"))  # the tab still has it
        assert page.js("return [localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
        page.js("sessionStorage.setItem('perceptune-key', 'of-yesterday')")
        ask(page, "color?")
        page.until(lambda: page.shown("#lock"))
        press(page, KEY, Keys.ENTER)
        page.until(lambda: page.shown("#ask"))
        assert len(page.all("#run option")) == 3, "each run once"
        page.one("#forget").click()
        page.until(lambda: page.shown("#lock"))
        assert page.js("return sessionStorage.length") == 0


def test_a_server_that_has_gone_is_told(window: Any, loaded: Runs) -> None:
    with served(loaded, key=None) as server:
        page = window.open(server.base)
    ask(page, "color?")
    page.answered()
    assert page.one(".refusal").text == "The server cannot be reached. Is it still running?"


def test_examples_ask_at_one_click(page: Any, server: Served) -> None:
    page.until(lambda: len(page.all(".example")) == 3)
    rows = server.request("GET", "/v1/examples/one")[1]["data"]
    assert page.texts(".example .question") == [row["prompt"] for row in rows]
    page.all(".example")[1].click()
    [said] = page.answered()
    picture = base64.b64decode(rows[1]["media"]["image"].partition(",")[2])
    assert said == answer(server, rows[1]["prompt"], picture=picture) != answer(server, rows[1]["prompt"])
    assert page.one(".asked strong").text == rows[1]["targets"][0]
    right = said.lower() == rows[1]["targets"][0]
    assert page.one(".note .chip").text == ("✓ as the reference" if right else "≠ unlike the reference")
    ask(page, "another question?")
    page.answered(2)
    assert "Reference" not in page.one(".exchange:first-child").text


def test_where_a_picture_enters_is_drawn_and_listed(page: Any, loaded: Runs) -> None:
    choose(page, "other", "two")
    labels = [one.get_attribute("aria-label") for one in page.all("figure svg[role=img]")]
    assert labels[1] == ("Of encoder's 4 layers, layer 2 enters 2, layer 3 enters 3 of the 4 layers of lm.")
    for run, name in zip(page.all("#insides > article"), ("one", "two"), strict=True):
        method: Any = loaded[name].model.method
        rows = page.js(
            "return [...arguments[0].querySelectorAll('tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))",
            run,
        )
        levels = method.levels("image")
        assert rows == [[str(levels[level]), str(layer)] for layer, level in method.injected.items()]
        assert page.js("return arguments[0].querySelectorAll('rect.used').length", run) == 2 * len(rows)


def test_an_answer_says_why_it_ended(page: Any, server: Served) -> None:
    page.one(".ask details summary").click()
    page.one("#tokens").send_keys("2")
    ask(page, "color?")
    page.answered()
    assert "cut off" in page.one(".note").text
    page.one("#tokens").send_keys("000")
    page.one("#question").send_keys("again", Keys.ENTER)  # the browser itself refuses more than the server allows
    assert len(page.all(".exchange")) == 1
    assert page.one("#tokens").get_attribute("max") == str(Limits().tokens)


def test_it_waits_for_models_that_are_being_loaded(window: Any, loaded: Runs) -> None:
    go_on = threading.Event()

    def load() -> Runs:
        assert go_on.wait(30)
        return loaded

    with served(load, key=None) as server:
        page = window.open(server.base)
        try:
            page.until(lambda: "being loaded" in "".join(page.texts("#trouble")))
            assert not page.shown("#ask")
        finally:
            go_on.set()
        page.until(lambda: page.shown("#ask"))
        assert not page.shown("#trouble")
