"""PETAL's parameter counts, on the published configurations, without a weight."""

from __future__ import annotations

from typing import Any

import pytest

from perceptune.building import method_options
from perceptune.config import find_recipe, load_recipe, read_yaml
from perceptune.show import describe

QFORMER, QUERIES, PROJECTION = 185_660_160, 32 * 768, 768 * 4096 + 4096


@pytest.mark.parametrize("lm", ["vicuna-7b", "flan-t5-xxl"])
@pytest.mark.parametrize(("method", "trained"), [("full", QFORMER + QUERIES + PROJECTION), ("head", 11_811_840)])
def test_the_rows_of_the_deck(lm: str, method: str, trained: int) -> None:
    """188.8 M and 11.8 M."""
    shown = describe(load_recipe({"backbone": "instructblip", "lm": f"Salesforce/instructblip-{lm}", "method": method}))
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
    shown = describe(load_recipe({"backbone": "instructblip", "lm": lm, "method": method}))
    assert shown["trainable"] == trained


LABELS = {"petal": 1_065_024, "V1": DMA, "V2": 1_065_024, "V3": DMA, "V4": 299_712, "random": 1_065_024,
          "cp": CP + 299_712, "experts-1": DMA + EXPERT, "experts-6": DMA + 6 * EXPERT + 6 * GATE, "switch": 1_065_024,
          "passes": 1_065_024, "released": 1_378_560}  # fmt: skip
CAPTIONS = {"epochs": 5, "lr": 1e-5, "warmup_lr": 1e-8, "warmup_steps": 1000, "min_lr": 0, "weight_decay": 0.05}
QUESTIONS = {"epochs": 5, "lr": 2e-5, "warmup_steps": 0, "min_lr": 1e-6, "weight_decay": 0.02}
SPOKEN = {"max_new_tokens": 50, "min_new_tokens": 5, "beams": 5, "repetition_penalty": 1.5, "length_penalty": 1}
ANSWERED = {"min_new_tokens": 0, "beams": 5, "repetition_penalty": 1.5, "length_penalty": -1}


@pytest.mark.parametrize(
    ("name", "batch", "train", "decode"),
    [
        ("flickr30k", 256, CAPTIONS, SPOKEN),
        ("textcaps", 256, CAPTIONS, SPOKEN),
        ("a-okvqa", 128, QUESTIONS, {**ANSWERED, "max_new_tokens": 100}),
        ("ok-vqa", 128, QUESTIONS, {**ANSWERED, "max_new_tokens": 100}),
        ("textvqa", 256, QUESTIONS, {**ANSWERED, "max_new_tokens": 10}),
        ("few-shot", 10, {"samples": 50, "steps": 500, "lr": 1e-5}, SPOKEN),
    ],
)
def test_the_recipes_are_the_paper_s(name: str, batch: int, train: dict[str, Any], decode: dict[str, Any]) -> None:
    recipe = load_recipe(read_yaml(find_recipe(f"paper/petal/{name}")))
    assert recipe.train.batch_size * recipe.train.accumulate == batch
    for section, expected in ((recipe.train, train), (recipe.decode, decode)):
        assert {key: getattr(section, key) for key in expected} == expected
    assert recipe.task is not None
    assert recipe.task.name in (name, "flickr30k")
    if name in ("flickr30k", "a-okvqa"):
        assert set(recipe.compare.methods) == set(LABELS)
    options = method_options(recipe)
    assert (options.sib.alpha, options.sib.eta, options.experts.n, options.dma.r) == (0.1, 0.1, 3, 64)


@pytest.mark.parametrize("label", LABELS)
def test_the_ablations_are_recipe_keys(label: str) -> None:
    recipe = load_recipe(read_yaml(find_recipe("paper/petal/a-okvqa")))
    method = {"name": label, **recipe.compare.methods[label]}
    shown = describe(load_recipe({"backbone": "instructblip", "lm": recipe.lm.id, "method": method}))
    assert shown["trainable"] == LABELS[label]
    options = method_options(load_recipe({"backbone": "instructblip", "method": method}))
    parts = (options.dma is not None, options.experts is not None, options.sib is not None)
    table = {"V1": (1, 0, 1), "V2": (1, 1, 0), "V3": (1, 0, 0), "V4": (0, 1, 1), "released": (1, 1, 0)}
    assert parts == table.get(label, (1, 1, 1))
    assert bool(options.instructions) == (label not in ("V1", "V3", "released"))
