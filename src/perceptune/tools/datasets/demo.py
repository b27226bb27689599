"""`perceptune data demo`: a small synthetic data set that a model can learn, with a recipe for it."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from perceptune.data.media.synthetic import AUDIO_EVENTS, COLORS, SHAPES, draw_image, draw_video, play
from perceptune.errors import UserError, disk_errors
from perceptune.utils.atomic_io import write_json_lines, write_text
from perceptune.utils.templates import render

SIZES = {"train": 240, "validation": 60, "test": 80}  # media in each split
SIZES_OF_VIDEOS = {"train": 160, "validation": 40, "test": 60}  # each costs as much to encode as eight images
# Settings that learn these sets in one to two minutes on two CPU cores; docs/data_tools.md has the figures.
_RECIPE = Path(__file__).with_name("demo.yaml.j2")
Row = dict[str, Any]


class _Kind(NamedTuple):
    """Generator of one modality."""

    title: str
    encoder: str  # as written in a recipe
    sizes: dict[str, int]
    steps: int
    suffix: str
    make: Callable[[random.Random, int], tuple[bytes, list[Row]]]  # random, number -> file, its questions


def write_demo(folder: Path, modality: str = "image", *, seed: int = 0) -> Path:
    """Write media, `train.jsonl`, `validation.jsonl`, `test.jsonl` and `recipe.yaml` into a new folder.

    With modality `all` the three sets share a folder and one recipe. The same seed writes the same rows and media.
    Returns the recipe's path. Raises `UserError` for a folder that is not empty.
    """
    chosen = _KINDS if modality == "all" else {modality: _KINDS[modality]}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and not empty: name a new folder")
    with disk_errors(folder):
        for name in chosen:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for split in SIZES:
            rows = [row for name, kind in chosen.items() for row in _split(folder, name, kind, split, seed)]
            # Rows of several modalities are interleaved, as in mixed batches.
            random.Random(f"{seed} {split}").shuffle(rows)
            write_json_lines(folder / f"{split}.jsonl", rows)
        write_text(folder / "recipe.yaml", _recipe(modality, chosen))
    return folder / "recipe.yaml"


def _recipe(modality: str, chosen: dict[str, _Kind]) -> str:
    encoders = ", ".join(f"{name}: {kind.encoder}" for name, kind in chosen.items())
    *titles, title = (kind.title for kind in chosen.values())
    title = f"{', '.join(titles)} and {title}" if titles else title
    steps = sum(kind.steps for kind in chosen.values())
    return render(_RECIPE, title=title.capitalize(), name=modality, encoders=f"{{{encoders}}}", steps=steps) + "\n"


def _split(folder: Path, modality: str, kind: _Kind, split: str, seed: int) -> Iterator[Row]:
    chance = random.Random(f"{seed} {modality} {split}")
    for number in range(kind.sizes[split]):
        data, asked = kind.make(chance, number)
        name = f"{modality}/{split}-{number:03d}.{kind.suffix}"
        (folder / name).write_bytes(data)
        for row in asked:
            yield {"id": f"{modality}-{split}-{number:03d}-{row['answer_type']}", modality: name, **row}


def _row(kind: str, question: str, answer: str) -> Row:
    return {"prompt": question, "targets": [answer], "answer_type": kind}


def _image(chance: random.Random, number: int) -> tuple[bytes, list[Row]]:
    color, shape, asked = _shape(number)
    return draw_image(chance, color, shape), [*asked, _row("caption", "Describe the picture.", f"a {color} {shape}")]


def _video(chance: random.Random, number: int) -> tuple[bytes, list[Row]]:
    color, shape, asked = _shape(number)
    blinks = number // (len(COLORS) * len(SHAPES)) % 2 == 1
    seen = f"a {'blinking' if blinks else 'steady'} {color} {shape}"
    more = [_row("blinks", "Does it blink?", "yes" if blinks else "no"), _row("caption", "Describe the clip.", seen)]
    return draw_video(chance, color, shape, blinks), asked + more


def _audio(chance: random.Random, number: int) -> tuple[bytes, list[Row]]:
    name = list(AUDIO_EVENTS)[number % len(AUDIO_EVENTS)]
    times = chance.randint(1, 3)
    count = ("once", "twice", "three times")[times - 1]
    told = _row("caption", "Describe the sound.", f"{name}, {count}")
    asked = [_row("sound", "What is heard?", name), _row("count", "How often is it heard?", count), told]
    return play(chance, name, times), asked


def _shape(number: int) -> tuple[str, str, list[Row]]:
    """Return a color and a shape, each pair equally often, and the questions about them."""
    color, shape = list(COLORS)[number % len(COLORS)], SHAPES[number // len(COLORS) % len(SHAPES)]
    asked = [_row("color", "What color is the shape?", color), _row("shape", "What shape is it?", shape)]
    return color, shape, asked


_KINDS = {
    "image": _Kind("images of shapes", "{id: default, size: 112, resize: squash}", SIZES, 200, "png", _image),
    "audio": _Kind("tones, chirps and noise", "{id: dinov2-small, seconds: 2}", SIZES, 250, "flac", _audio),
    "video": _Kind(
        "videos of shapes", "{id: default, size: 112, resize: squash, frames: 8}", SIZES_OF_VIDEOS, 200, "mp4", _video
    ),
}  # fmt: skip
