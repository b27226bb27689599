"""Chat messages in transformers' form: texts, and media given as files, addresses, bytes or decoded."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perceptune.data.conversations import group_media, join_texts, marks_in_text
from perceptune.data.media.rgb import upright_rgb
from perceptune.errors import UserError, nearest
from perceptune.models.hf.configuration import INPUTS
from perceptune.types import Medium, Message, Sample

_LOCATIONS = ("url", "path", "base64")


@dataclass(frozen=True)
class Chat:
    """A conversation: what is asked, and the answer that follows if the last message is the assistant's."""

    sample: Sample
    answer: str | None = None


def read_chat(messages: Sequence[Mapping[str, Any]], rate: int | None = None) -> Chat:
    """Return the conversation in messages; `rate` in Hz is that of audio arrays.

    Texts of one message are joined with line breaks; a medium stands before the text that follows it.
    Raises `UserError` naming the message.
    """
    turns: list[Message] = []
    media: list[tuple[str, Medium]] = []
    for place, message in enumerate(messages):
        turn, own = _read(place, message, rate)
        turns.append(turn)
        media += own
    answer = turns.pop().text if turns and turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise UserError("messages: there is no question: the last message, before an answer, is the user's")
    *history, last = turns
    marks = marks_in_text(last.marks, history)
    return Chat(Sample("chat", group_media(media), last.text, marks=marks, history=tuple(history)), answer)


def _read(place: int, message: Mapping[str, Any], rate: int | None) -> tuple[Message, list[tuple[str, Medium]]]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise UserError(f"messages[{place}]: role is {role!r}{nearest(str(role), ('system', 'user', 'assistant'))}")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts: list[str] = []
    found: list[tuple[int, str, Medium]] = []  # number of texts before each medium
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind in INPUTS:
            found.append((len(texts), kind, _medium_of(place, kind, part, rate)))
        else:
            raise UserError(f"messages[{place}]: a part of type {kind!r}{nearest(str(kind), ('text', *INPUTS))}")
    said = Message(role, *join_texts(texts, [(number, kind) for number, kind, _ in found]))
    return said, [(kind, medium) for _, kind, medium in found]


def _medium_of(place: int, kind: str, part: Mapping[str, Any], rate: int | None) -> Medium:
    for key in (kind, *_LOCATIONS):
        if (given := part.get(key)) is not None:
            return to_medium(base64.b64decode(given) if key == "base64" else given, kind, rate)
    raise UserError(f"messages[{place}]: a part of type {kind} without `{kind}`, `url`, `path` or `base64`")


def to_medium(given: Any, modality: str, rate: int | None = None) -> Medium:
    """Return a medium as encoders load it: a path or bytes stay, what is decoded is written without loss.

    An array of audio is mono, (n,) at `rate` Hz. Raises `UserError` for what is not a medium of this modality.
    """
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        return _fetched(given, modality)
    if isinstance(given, str) and given.startswith("data:"):
        return base64.b64decode(given.partition(",")[2])
    if isinstance(given, str | Path):
        return Path(str(given).removeprefix("file://"))
    if isinstance(given, bytes):
        return given
    if modality == "image":
        return _png(given)
    if modality == "audio":
        return _wave(given, rate)
    raise UserError(f"{modality}: {type(given).__name__} is no file: give a path, an address or bytes")


def _fetched(address: str, modality: str) -> Path:
    from perceptune.data.media.remote_media import RemoteMedia

    media = RemoteMedia()
    media.fetch_for(lambda: (media.place(modality, one) for one in [address]), "messages", 0)
    return media.place(modality, address)


def _png(given: Any) -> bytes:
    """Return an image, of Pillow or (H, W, 3) in numbers from 0 to 255, as PNG."""
    if not isinstance(given, Image.Image):
        values = np.asarray(given)
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3:
            raise UserError(
                f"image: an array of {values.dtype} {values.shape}: give uint8 (height, width, 3), or one of Pillow"
            )
        given = Image.fromarray(values)
    buffer = io.BytesIO()
    upright_rgb(given).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _wave(given: Any, rate: int | None) -> bytes:
    import soundfile

    values = np.asarray(given, np.float32)
    if values.ndim != 1 or rate is None:
        why = f"an array of {values.ndim} dimensions" if values.ndim != 1 else "an array without `sampling_rate`"
        raise UserError(f"audio: {why}: give mono (n,) and its rate in Hz, or a file")
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()
