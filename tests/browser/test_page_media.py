"""What can be given to the page: dropped, pasted, chosen and recorded media, and what it says where it cannot be."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

import chromium
from perceptune.data.media.audio import read_audio, read_audio_header
from perceptune.data.media.source import open_image
from perceptune.data.media.video import describe_video
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from perceptune.serving.web_page import describe_for_page
from servers import Served, data_url, part, photo, png, served


def attached(page: Any, kind: str) -> bytes:
    """The bytes of the medium that is shown."""
    element = {"image": "img", "audio": "audio", "video": "video"}[kind]
    page.until(lambda: page.shown(f".tile {element}"))
    head, _, data = page.one(f".tile {element}").get_attribute("src").partition(",")
    assert head.startswith(f"data:{kind}/")
    return base64.b64decode(data)


def ask(page: Any, model: str = "one") -> str:
    page.js(
        "const r = document.getElementById('run'); r.value = arguments[0]; r.dispatchEvent(new Event('change'))", model
    )
    page.one("#question").send_keys("color?", Keys.ENTER)
    [said] = page.answered()
    assert page.texts(".refusal") == []
    return str(said)


def trouble(page: Any) -> str:
    page.until(lambda: page.shown("#trouble"))
    return str(page.one("#trouble").text)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_dropped_or_pasted_picture_is_asked_about(page: Any, server: Served, event: str) -> None:
    page.drop(png("teal"), "teal.png", "image/png", event)
    assert attached(page, "image") == png("teal")
    answers = [server.chat(media=[part(data_url(png(color)))])[1] for color in ("teal", "red")]
    teal, red = (reply["choices"][0]["message"]["content"] for reply in answers)
    assert ask(page) == teal != red


def test_a_file_is_chosen_and_removed(page: Any, server: Served, tmp_path: Path) -> None:
    page.one("#file").send_keys(str(photo(tmp_path, "blue")))
    assert attached(page, "image") == png("blue")
    page.one(".tile button").click()
    assert not page.shown(".tile")
    assert page.js("return document.activeElement.id") == "file"
    page.one("#file").send_keys(str(photo(tmp_path, "red")))  # the same name again
    assert attached(page, "image") == png("red")
    assert ask(page) == server.chat()[1]["choices"][0]["message"]["content"]


def test_what_is_no_medium_is_refused_in_words(page: Any) -> None:
    page.drop(b"hello", "notes.txt", "text/plain")
    assert trouble(page) == "notes.txt is not an image, audio or video file."
    page.drop(b"", "empty.png", "image/png")
    page.until(lambda: page.one("#trouble").text == "empty.png is empty.")
    assert not page.shown(".tile")


def test_a_file_that_is_too_large_is_not_even_sent(window: Any, loaded: Runs) -> None:
    with served(loaded, Limits(image_mb=0.002), key=None) as server:
        page = window.open(server.base)
        page.drop(bytes(3000), "large.png", "image/png")
        assert trouble(page) == "large.png has 3 KiB; this server takes an image of 3 KiB at most."
        assert server.metric("requests_admitted") == 0


def test_a_request_that_is_too_large_is_told(window: Any, loaded: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has the last word, whatever the page believes."""
    monkeypatch.setattr(
        "perceptune.serving.web_page.describe_for_page", lambda run, _, n: describe_for_page(run, Limits(), n)
    )
    with served(loaded, Limits(body_mb=0.0001), key=None) as server:
        page = window.open(server.base)
        page.drop(png(size=(8, 8)), "small.png", "image/png")
        attached(page, "image")
        page.one("#question").send_keys("color?", Keys.ENTER)
        page.answered()
        assert page.one(".refusal").text == "Refused with status 413: the request is larger than 104 bytes"


def test_the_microphone_is_recorded_as_wav(page: Any) -> None:
    page.one("#record").click()
    page.until(lambda: "0:01" in page.one("#record").text)
    page.one("#record").click()
    data = attached(page, "audio")
    assert page.one("#record").text == "Record audio"
    header = read_audio_header(data, "the recording")
    assert (header.rate, header.channels) == (48_000, 1)
    assert 0.3 < header.seconds < 20
    assert abs(read_audio(data, 16_000, 10)).max() > 0.01  # the browser's false microphone beeps
    ask(page, "senses")


def test_the_camera_takes_a_picture(page: Any) -> None:
    page.one("#camera-open").click()
    page.until(lambda: page.js("return document.getElementById('live').videoWidth") > 0)
    assert page.js("return document.activeElement.id") == "snap"
    page.js("window.first = document.getElementById('live').srcObject")
    page.one("#camera-open").click()  # once more
    page.until(lambda: page.js("return first.getTracks()[0].readyState") == "ended")
    page.until(lambda: page.js("return document.getElementById('live').videoWidth") > 0)
    page.one("#snap").click()
    picture = open_image(attached(page, "image"))
    assert isinstance(picture, Image.Image)
    assert len(picture.getcolors(10**6) or []) > 3
    assert not page.shown("#camera")
    assert page.js("return document.getElementById('live').srcObject") is None  # its light is off
    ask(page)


def test_the_camera_records_a_clip(page: Any) -> None:
    page.one("#camera-open").click()
    page.until(lambda: page.js("return document.getElementById('live').videoWidth") > 0)
    page.one("#film").click()
    page.until(lambda: "0:01" in page.one("#film").text)
    page.one("#film").click()
    clip = describe_video(attached(page, "video"), "the clip", decode=True)
    assert clip.frames >= 1  # a busy machine drops most of them
    ask(page, "senses")


def test_without_leave_the_page_says_so(server: Served, window: Any) -> None:
    with chromium.browser(media="deny") as page:
        page.open(server.base)
        for button, name in (("#camera-open", "camera"), ("#record", "microphone")):
            page.one(button).click()
            page.until(lambda name=name: f"not allowed to use the {name}" in page.one("#trouble").text)
        assert not page.shown("#camera")


@pytest.mark.parametrize(
    ("error", "words"),
    [("NotFoundError", "There is no camera here."), ("NotReadableError", "Another program may be using it.")],
)
def test_without_a_camera_the_page_says_so(page: Any, error: str, words: str) -> None:
    page.js(f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '{error}'))")
    page.one("#camera-open").click()
    assert words in trouble(page)
    page.js("Object.defineProperty(navigator, 'mediaDevices', { value: undefined, configurable: true })")
    page.one("#camera-open").click()
    page.until(lambda: "localhost" in page.one("#trouble").text)
