"""The study of captions: its rows and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import seeing
from perceptune.config.recipe import load_recipe
from perceptune.models.backbone import method_options
from planning import STUDIES

PLAN = yaml.safe_load((STUDIES / "seeing.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", PLAN["parts"])
def test_each_row_is_a_recipe_of_its_own(part: str) -> None:
    found = set()
    for row, overrides in seeing.rows_of(PLAN["parts"][part]).items():
        recipe = load_recipe(seeing.RECIPE, ["task.train=train.jsonl", *overrides])
        assert method_options(recipe) is not None, row
        found.add((recipe.model_dump_json(), row))
    assert len({text for text, _ in found}) == len(found)


def test_each_way_of_decoding_is_one_of_its_own() -> None:
    found = [load_recipe(seeing.RECIPE, ["task.train=x", *way]).decode for way in PLAN["decoding"].values()]
    assert len({decode.model_dump_json() for decode in found}) == len(found)


def test_the_table_has_the_interval_over_seeds(tmp_path: Path) -> None:
    for seed, cider in ((1, 0.2), (2, 0.3), (3, 0.25)):
        folder = tmp_path / "part" / f"row-{seed}" / "test"
        folder.mkdir(parents=True)
        result = {"CIDEr": cider, "BLEU-4": 0.1, "ROUGE-L": 0.4, "trained_share": 0.009}
        (folder / "results.json").write_text(json.dumps(result))
    [line] = seeing.table(tmp_path / "part", {"row": [], "absent": []}, [1, 2, 3, 4])
    assert line.startswith("row, test: 3 seeds, 0.90%; CIDEr 25.0 ± 5.0 (12.6 to 37.4), BLEU-4 10.0 ± 0.0")
