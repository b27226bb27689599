"""PETAL's parameter counts, on the published configurations, without a weight."""

from __future__ import annotations

import pytest

from perceptune.config import load_recipe
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
