"""PETAL's parameter counts, on the published configurations, without a weight."""

from __future__ import annotations

from typing import Any

import pytest

from perceptune.config.recipe import find_recipe, load_recipe, read_yaml
from perceptune.models.backbone import method_options
from perceptune.tools.summary import summarize

QFORMER, QUERIES, PROJECTION = 185_660_160, 32 * 768, 768 * 4096 + 4096


@pytest.mark.parametrize("lm", ["vicuna-7b", "flan-t5-xxl"])
@pytest.mark.parametrize(("method", "trained"), [("full", QFORMER + QUERIES + PROJECTION), ("head", 11_811_840)])
def test_the_rows_of_the_deck(lm: str, method: str, trained: int) -> None:
    """188.8 M and 11.8 M."""
    shown = summarize(
        load_recipe({"backbone": "instructblip", "lm": f"Salesforce/instructblip-{lm}", "method": method})
    )
    parts = {part["name"]: part["parameters"] for part in shown["parts"]}
    assert shown["trainable"] == parts["method.taken"] == trained
    assert parts["qformer"] + trained == QFORMER + QUERIES + PROJECTION
    assert parts["encoders.image"] == 985_952_256  # the ViT-g of 39 blocks, as published
    assert shown["total"] == sum(parts.values())
    assert {site["layer"] for site in shown["sites"]} >= ({11} if method == "head" else set(range(12)))


DMA, CP, EXPERT, GATE = 765_312, 241_152, 99_136, 768


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ({"name": "petal"}, DMA + 3 * EXPERT + 3 * GATE),
        ({"name": "petal-dma"}, DMA),
        ({"name": "petal-aim"}, 1_065_024),
        ({"name": "petal-sib"}, DMA),
        ({"name": "petal", "dma": None}, 299_712),
        ({"name": "petal", "dma": {"core": "cp"}}, CP + 299_712),
        ({"name": "petal", "experts": {"n": 6}}, DMA + 6 * EXPERT + 6 * GATE),
        ({"name": "petal", "mode": "multi_pass", "random_instructions": [16, 24, 32]}, 1_065_024),
        # As released, but for 18,432 parameters there that act on nothing: 1,396,992.
        ({"name": "petal-released"}, DMA + 6 * EXPERT + 18_432),
    ],
    ids=str,
)
def test_petal_s_parts(method: dict[str, Any], trained: int) -> None:
    """The 1 M of the deck; estimators of information are not counted."""
    lm = "Salesforce/instructblip-flan-t5-xxl"
    shown = summarize(load_recipe({"backbone": "instructblip", "lm": lm, "method": method}))
    assert shown["trainable"] == trained


# What the deck calls 2.9 M, 4.8 M and 5.0 M; its two largest rows are above.
DECK = {"maple": 2_960_640, "llama-adapter": 4_784_640, "lora": 5_799_936}
LABELS = {"petal": 1_065_024, "V1": DMA, "V2": 1_065_024, "V3": DMA, "V4": 299_712, "random": 1_065_024,
          "cp": CP + 299_712, "experts-1": DMA + EXPERT, "experts-6": DMA + 6 * EXPERT + 6 * GATE, "switch": 1_065_024,
          "passes": 1_065_024, "released": 1_378_560}  # fmt: skip


@pytest.mark.parametrize("label", DECK)
def test_the_deck_s_rows_are_labels(label: str) -> None:
    recipe = load_recipe(read_yaml(find_recipe("paper/petal/flickr30k")))
    method = {"name": label, **recipe.compare.methods[label]}
    shown = summarize(load_recipe({"backbone": "instructblip", "lm": recipe.lm.id, "method": method}))
    assert shown["trainable"] == DECK[label]


@pytest.mark.parametrize("label", LABELS)
def test_the_ablations_are_recipe_keys(label: str) -> None:
    recipe = load_recipe(read_yaml(find_recipe("paper/petal/a-okvqa")))
    method = {"name": label, **recipe.compare.methods[label]}
    shown = summarize(load_recipe({"backbone": "instructblip", "lm": recipe.lm.id, "method": method}))
    assert shown["trainable"] == LABELS[label]
    assert set(recipe.compare.methods) == {*LABELS, *DECK, "full", "head"}
    options = method_options(load_recipe({"backbone": "instructblip", "method": method}))
    parts = (options.dma is not None, options.experts is not None, options.sib is not None)
    table = {"V1": (1, 0, 1), "V2": (1, 1, 0), "V3": (1, 0, 0), "V4": (0, 1, 1), "released": (1, 1, 0)}
    assert parts == table.get(label, (1, 1, 1))
    assert bool(options.instructions) == (label not in ("V1", "V3", "released"))
