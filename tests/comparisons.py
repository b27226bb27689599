"""A small comparison: its recipe, and the command that runs it."""

from __future__ import annotations

from pathlib import Path

import yaml

import support


def write_recipe(folder: Path, dwarfs: Path) -> Path:
    """Write a recipe with a training and a test split, and its data."""
    train, test = support.save_data(folder / "data", rows=16), support.save_data(folder / "data", rows=8, name="test")
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder")
    given |= {"task": {"name": "jsonl", "train": str(train), "test": str(test)}, "method": "epalm"}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["compare", str(recipe), "--out", str(out), "method.n_levels=2", *more]
