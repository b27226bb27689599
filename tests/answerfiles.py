"""Files of predictions and references, written as the tests of scoring need them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[[str, Any], str]
TEXTS = {"1": "yes", "2": "a red dog", "3": ""}
ANSWERS = {"1": ["yes"] * 9 + ["no"], "2": ["red dog"] * 3 + ["dog"] * 7, "3": ["no"] * 10}
LINES = "".join(json.dumps({"id": id, "prediction": text}) + "\n" for id, text in TEXTS.items())


def writer(folder: Path) -> Write:
    """Writes text, bytes, rows of a JSONL file (list) or, under a name that ends in `.json`, a JSON document."""

    def written(name: str, content: Any) -> str:
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="")
        elif name.endswith(".json"):
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return str(path)

    return written


def given(write: Write, **texts: str) -> str:
    """A file of predictions."""
    return write("p.jsonl", [{"id": id, "prediction": text} for id, text in (texts or TEXTS).items()])


def held(write: Write) -> str:
    """A file of annotators' answers."""
    return write("r.jsonl", [{"id": id, "answers": answers, "image": "i"} for id, answers in ANSWERS.items()])
