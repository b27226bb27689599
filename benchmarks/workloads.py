"""What both sides of a comparison run: trainings and answers by name, with their recipes for `small_models.make`."""

import json
from pathlib import Path
from typing import Any

TRAININGS = ("epalm", "lora", "petal", "audio", "video")
# Answers by name: the training whose recipe they have, its keys of decoding, the number of samples.
ANSWERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "greedy": ("epalm", {}, 2),
    "beams of 3": ("epalm", {"beams": 3}, 2),
    "sampling": ("epalm", {"sample": True, "top_p": 0.9}, 2),
    "batch of 16": ("epalm", {}, 16),
    "petal": ("petal", {}, 4),
}
ROWS = (*(f"train {name}" for name in TRAININGS), *(f"answer {name}" for name in ANSWERS))


def recipe(folder: Path, name: str, cache: Path, **sections: Any) -> dict[str, Any]:
    """One of `TRAININGS` on the models in a folder: features of images are cached, audio and video encoded each time.

    `sections` change keys of `train` and `decode`.
    """
    modality = name if name in ("audio", "video") else "image"
    data = str(folder / f"data/{modality}.jsonl")
    common: dict[str, Any] = {
        "name": name,
        "task": {"name": "jsonl", "train": data, "validation": data},
        "cache": {"dir": str(cache), "features": "disk" if modality == "image" else "off"},
        "train": {"steps": 20, "batch_size": 6, "lr": 1e-3, "prompt_lr": 1e-3, "warmup_steps": 0,
                  "precision": "float32", **sections.get("train", {})},
        "decode": {"max_new_tokens": 12, **sections.get("decode", {})},
    }  # fmt: skip
    if name == "petal":
        method = {"name": "petal", "dma": {"r": 8}, "instructions": ["is this"]}
        return {**common, "backbone": "instructblip", "lm": str(folder / "blip"), "method": method}
    method = {"name": "lora"} if name == "lora" else {"name": "epalm", "n_levels": 3}
    return {**common, "lm": str(folder / "lm"), "encoders": {modality: str(folder / modality)}, "method": method}


def questions(folder: Path, count: int) -> list[tuple[str, Path, str]]:
    """Number, image and question of the first samples."""
    lines = (folder / "data/image.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [(str(number), folder / "data" / row["image"], row["prompt"]) for number, row in enumerate(rows)]
