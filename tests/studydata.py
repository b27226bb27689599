"""Made-up sets in the form in which the studies' data come: a few rows of each, with pictures that are one colour."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from support import COLORS

PHOTOS = {"train": 12, "dev": 4, "test": 6}


def save_study_data(folder: Path) -> Path:
    """The folder with every set that `studies/prepare.py` reads, and a file in the place of the audio model."""
    photos = [(f"{split}{i}", split, list(COLORS)[i % 4]) for split, n in PHOTOS.items() for i in range(n)]
    captions = [
        {
            "file": f"images/{name}.png",
            "split": split,
            "captions": [f"A {color} dog runs .", f"The {color} dog .", f"{color} ."],
        }
        for name, split, color in photos
    ]
    _write(folder / "flickr8k" / "metadata.jsonl", captions)
    for name, _, color in photos:
        _picture(folder / "flickr8k" / "images" / f"{name}.png", color)
    rooms = [("train", "image1"), ("train", "image1"), ("test", "image2")]
    _write(folder / "daquar" / "metadata.jsonl", [
        {"file": f"images/{name}.png", "split": split, "question": "how many chairs?", "answer": "chair, table"}
        for split, name in rooms
    ])  # fmt: skip
    sounds = [(4, 1, "A"), (4, 2, "A"), (4, 2, "B"), (4, 3, "A"), (1, 9, "A")]
    _write(folder / "esc50_subset" / "metadata.jsonl", [
        {"file": f"audio/{fold}-{source}-{take}-0.ogg", "fold": fold, "category": "church_bells",
         "template_caption": "church bells ringing"}
        for fold, source, take in sounds
    ])  # fmt: skip
    digits = [
        {"file": f"audio/0_{i}.wav", "split": "test" if i < 2 else "train", "transcript": "zero"} for i in range(4)
    ]
    _write(folder / "fsdd" / "metadata.jsonl", digits)
    _write(folder / "fight_surv" / "metadata.jsonl", [
        {"file": f"video/fi{i}.mp4", "youtube": f"source{i // 2}" if i < 8 else "", "question": "why?", "answer": "no"}
        for i in range(10)
    ])  # fmt: skip
    _write(folder / "audiocaps_demo" / "metadata.jsonl", [{"file": "audio/a.ogg", "captions": ["A dog barks"]}])
    _write(folder / "tuxpaint_stamps" / "metadata.jsonl", [{"image": "images/frog.jpg", "captions": ["A frog."]}])
    (folder / "models").mkdir()
    (folder / "models" / "mn04_as_mAP_432.pt").write_bytes(b"weights")
    return folder


def _picture(path: Path, color: str) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (16, 16), COLORS[color]).save(path)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
