"""Mistakes that come to light far from their cause: the message names it, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import perceptune
import runs as dwarf_runs
from perceptune.errors import UserError
from perceptune.evaluation.controls import shuffle_media
from perceptune.training.checkpoints import require_same_recipe
from perceptune.types import Sample


def test_one_image_in_many_rows_has_no_statistics(dwarfs: Path, tmp_path: Path) -> None:
    row = {"image": str(dwarfs / "data/train0.png"), "prompt": "color?", "targets": ["red"]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 12)
    given = dwarf_runs.recipe(dwarfs, task={"name": "jsonl", "train": str(tmp_path / "rows.jsonl")})
    said = r"two different media for `image`, the training samples hold 1: .*method\.standardize=false"
    with pytest.raises(UserError, match=said):
        perceptune.train(given, tmp_path / "run")


def test_nor_can_it_be_shuffled() -> None:
    rows = [Sample(str(i), {"image": Path("one.png")}, "color?") for i in range(12)]
    said = r"two different media for `image`, the samples hold 1: .*eval\.shuffled_control and eval\.at_end"
    with pytest.raises(UserError, match=said):
        shuffle_media(rows, 0)


@pytest.mark.parametrize("key", ["steps", "epochs", "samples"])
def test_a_run_that_is_to_be_longer_is_told_of_init_from(key: str, dwarfs: Path) -> None:
    stored, longer = (perceptune.load_recipe(dwarf_runs.recipe(dwarfs), [f"train.{key}={value}"]) for value in (10, 20))
    with pytest.raises(UserError, match=rf"train\.{key} = 10.*, the recipe now says 20.*init_from=runs/mine"):
        require_same_recipe(Path("runs/mine"), stored, longer)
    other = perceptune.load_recipe(dwarf_runs.recipe(dwarfs), [f"train.{key}=10", "train.lr=0.5"])
    with pytest.raises(UserError) as caught:
        require_same_recipe(Path("runs/mine"), stored, other)
    assert "init_from" not in str(caught.value)
