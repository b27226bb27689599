"""Rows of a data file with mistakes planted in them, each of a known kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from perceptune.data.records import MAX_LINE

PICTURES = ("a.png", "b.png")
BROKEN = "broken.png"  # opens like a picture and is none


def desk(folder: Path) -> Path:
    """A folder with two pictures and a broken one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, color in zip(PICTURES, ("red", "blue"), strict=True):
        Image.new("RGB", (20, 10), color).save(folder / name)
    (folder / BROKEN).write_bytes(b"\x89PNG\r\n\x1a\nnothing of the kind")
    return folder


def good(number: int, **changes: Any) -> dict[str, Any]:
    """A row without a mistake."""
    row = {"id": f"row-{number}", "image": PICTURES[number % 2], "prompt": f"what is {number}?", "targets": ["a", "b"]}
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def text(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def planted(kind: str, number: int) -> bytes:
    """A line with one mistake of a kind; `row-0` is in use already."""
    changes: dict[str, dict[str, Any]] = {
        "missing-key": {"prompt": ...}, "wrong-type": {"targets": ["a", {}]}, "empty-id": {"id": " "},
        "empty-prompt": {"prompt": " ?"}, "no-targets": {"targets": []}, "empty-target": {"targets": "."},
        "empty-medium": {"image": ""}, "address": {"image": "https://example.org/a.png"},
        "duplicate-id": {"id": "row-0"}, "missing-medium": {"image": f"{number}.png"}, "nan": {"weight": float("nan")},
    }  # fmt: skip
    if kind in changes:
        return text(good(number, **changes[kind]))
    match kind:
        case "not-utf8":
            return text(good(number)).replace(b"what", b"wh\xe4t")
        case "invalid-json":
            return text(good(number))[:-1]
        case "not-an-object":
            return text(list(good(number)))
        case "bad-text":
            return json.dumps(good(number, prompt="what \ud83d?")).encode()
        case "long-line":
            return b'{"a": "' + b"x" * MAX_LINE + b'"}'
    raise ValueError(kind)


KINDS = (
    "missing-key", "wrong-type", "empty-id", "empty-prompt", "no-targets", "empty-target", "empty-medium", "address",
    "duplicate-id", "missing-medium", "nan", "not-utf8", "invalid-json", "not-an-object", "bad-text",
)  # fmt: skip
