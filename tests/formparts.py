"""What data sets in the forms of users are made of: media, texts, and the table of all forms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

COUNT = 24  # media of a data set
COLORS = ("red", "green", "blue")
RGB = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


class Case(NamedTuple):
    """A data set: where it lies, further words of the commands, and pieces of the line about it."""

    place: str
    said: Sequence[str]
    words: Sequence[str] = ()
    split: str = "test"  # that is evaluated
    asked: str | None = None  # data for `predict`, if not all of it


FORMS: dict[str, Callable[[Path], Case]] = {}


def form(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
    FORMS[make.__name__] = make
    return make


@cache
def picture(number: int, kind: str = "PNG") -> bytes:
    """A small image whose color is that of its number."""
    values = np.full((12, 12, 3), RGB[COLORS[number % 3]], np.uint8)
    values[number % 12, number // 12] = 255
    found = io.BytesIO()
    Image.fromarray(values).save(found, kind)
    return found.getvalue()


@cache
def sound(number: int) -> bytes:
    wave = 0.5 * np.sin(2 * np.pi * (200 + 300 * (number % 3)) * np.arange(4000) / 8000 + number)
    found = io.BytesIO()
    soundfile.write(found, wave, 8000, format="WAV")
    return found.getvalue()


def write(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def pictures(folder: Path, template: str = "{n}.png") -> list[str]:
    names = [template.format(n=number) for number in range(COUNT)]
    for number, name in enumerate(names):
        write(folder / name, picture(number))
    return names


def table(rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8", start: str = "") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return (start + text.getvalue()).encode(encoding)


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def color(number: int) -> str:
    return COLORS[number % 3]


def caption(number: int) -> str:
    return f"a {color(number)} square with a dot at {number}"
