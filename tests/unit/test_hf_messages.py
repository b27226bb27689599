"""Chat messages and media in transformers' form."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from perceptune.models.hf.messages import read_chat, to_medium
from perceptune.types import Mark, Message
from servers import png
from web import MediaWeb


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_a_medium_stands_before_the_text_that_follows_it() -> None:
    chat = read_chat(
        [
            {"role": "system", "content": "Be brief."},
            user({"type": "image", "path": "a.png"}, text("color?")),
            {"role": "assistant", "content": "red"},
            user(text("and"), {"type": "image", "image": b"b"}, text("here?")),
        ]
    )
    assert chat.answer is None
    assert chat.sample.media == {"image": (Path("a.png"), b"b")}
    assert (chat.sample.prompt, chat.sample.marks) == ("and\nhere?", (Mark(4, "image"),))
    assert chat.sample.history == (
        Message("system", "Be brief."), Message("user", "color?", (Mark(0, "image"),)), Message("assistant", "red"),
    )  # fmt: skip


def test_the_last_message_of_the_assistant_is_the_answer() -> None:
    chat = read_chat([user(text("color?")), {"role": "assistant", "content": "red"}])
    assert (chat.sample.prompt, chat.answer) == ("color?", "red")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "assistant", "content": "red"}], "there is no question"),
        ([{"role": "usr", "content": "a"}], r"messages\[0\]: role is 'usr'; did you mean `user`"),
        ([user(text("a"), {"type": "imgae", "path": "a.png"})], r"type 'imgae'; did you mean `image`"),
        ([user({"type": "image"}, text("a"))], "a part of type image without `image`, `url`, `path` or `base64`"),
    ],
)
def test_what_is_no_question_is_said(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_chat(messages)


def test_images_come_through_without_loss(web: MediaWeb) -> None:
    picture = open_image(png())
    encoded = base64.b64encode(png()).decode()
    web.files["/picture.png"] = png()
    address = "http://media.example/picture.png"
    for given in (picture, np.asarray(picture), png(), f"data:image/png;base64,{encoded}", address):
        assert open_image(to_medium(given, "image")).tobytes() == picture.tobytes()
    seen = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(seen, "PNG")
    through = Image.open(io.BytesIO(seen.getvalue()))
    assert open_image(to_medium(through, "image")).getpixel((0, 0)) == (255, 255, 255), "on white, as files are"


def test_arrays_of_audio_need_their_rate() -> None:
    wave = np.sin(np.arange(1600) / 7).astype(np.float32)
    assert np.allclose(read_audio(to_medium(wave, "audio", 16_000), 16_000, 0.1), wave, atol=1e-6)
    with pytest.raises(UserError, match="without `sampling_rate`"):
        to_medium(wave, "audio")
    with pytest.raises(UserError, match="2 dimensions"):
        to_medium(wave[None], "audio", 16_000)
    with pytest.raises(UserError, match="video: list is no file"):
        to_medium([1], "video")
    with pytest.raises(UserError, match=r"float32 \(4, 4, 3\)"):
        to_medium(np.zeros((4, 4, 3), np.float32), "image")
