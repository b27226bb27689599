"""The paper's methods on the paper's backbones: exact counts, what enters where, and the page that lists them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from perceptune.config.recipe import load_recipe
from perceptune.config.registry import leaf, leaves
from perceptune.config.schema import LMConfig
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.base import count
from perceptune.methods.slots.base import Injection
from perceptune.models.slots.build import load_encoder_of, load_lm, shape_of

PAGE = Path(__file__).parents[2] / "docs/methods.md"


@cache
def lm_of(name: str) -> FrozenLM:
    return load_lm(LMConfig(id=name), meta=True)


def built(name: str) -> tuple[Injection, int, int]:
    """A recipe's method on the meta device, what it trains, and all parameters."""
    recipe = load_recipe(f"paper/{name}")
    unfreezes = "unfreeze" in {**leaf("methods", recipe.method.name).defaults, **recipe.method.options()}
    lm = load_lm(recipe.lm, meta=True) if unfreezes else lm_of(recipe.lm.id)
    shapes, sizes, encoders = {}, 0, {}
    for modality, config in recipe.encoders.items():
        encoder = encoders[modality] = load_encoder_of(modality, config, meta=True)
        shapes[modality], sizes = shape_of(encoder), sizes + count(encoder)
    found = leaf("methods", recipe.method.name)
    with torch.device("meta"):
        method = found.module.METHOD(
            found.module.METHOD.Options(**{**found.defaults, **recipe.method.options()}), lm, shapes
        )
    method.unfreeze(lm, encoders)
    taken = sum(count(part) for part in method.unfrozen.values())
    return method, count(method), count(lm) + sizes + count(method) - taken


COUNTS: list[tuple[str, int, float]] = [
    ("limber", 1_968_640, 0.07),
    ("promptfuse", 15_106_560, 0.55),
    ("magma", 107_010_560, 3.76),
    ("frozenbilm", 107_010_560, 3.72),
    ("audio-adapter", 107_010_560, 3.76),
    ("late-adapter", 107_010_560, 3.76),
    ("deep-prompt", 25_743_360, 0.93),
    ("table15/epalm-pt", 15_106_560, 0.55),
    ("table15/epalm", 24_949_760, 0.90),
    ("table14/prompt-6-12-to-19-31", 24_949_760, 0.89),
    ("msvd-qa", 24_949_760, 0.89),
    ("table4/msvd-qa-epalm-pt", 15_106_560, 0.54),
    ("table4/msrvtt-qa-frozenbilm", 107_010_560, 3.72),
    ("table3/gqa", 4_239_360, 0.06),
    ("epalm-dma", 6 * 1_968_640 + 2 * 64 * 2560 + 64**3 + 3 * 32 * 64, 0.45),
    ("depalm", 17_888_256, 0.256),
    ("depalm-inner", 18_097_152, 0.259),
    ("depalm-xattn", 21_060_609, 0.302),
    ("depalm-xattn-narrow", 7_864_332, 0.113),
    ("depalm-avgpool", 20_987_904, 0.301),
    ("depalm-linear", 88_100_864, 1.25),
    ("depalm-group", 18_129_152, 0.26),
    ("depalm-rand", 4_203_520, 0.06),
    ("depalm-epalm", 4_313_088, 0.062),
    ("mapl", 2_906_368, 0.042),
    ("limber-all", 4_198_400, 0.06),
    ("lora", 1_968_640 + 32 * 2 * 8 * 2 * 2560, 0.17),
]


@pytest.mark.parametrize(("name", "trained", "percent"), COUNTS)
def test_counts_on_the_papers_backbones(name: str, trained: int, percent: float) -> None:
    _, counted, total = built(name)
    assert counted == trained
    assert counted / total * 100 == pytest.approx(percent, abs=0.006)


# What the rows of the ablations say, layers of the LM counted from 0: (levels, first, last, prompt, adapters).
ROWS: dict[str, tuple[int, int, int, str, bool]] = {
    "table9/12-to-12-23": (1, 11, 22, "mlp", False),
    "epalm-350m": (6, 11, 22, "mlp", False),
    "depalm": (1, 0, 0, "plain", False),
    "depalm-inner": (4, 17, 28, "plain", False),
    "depalm-xattn": (4, 17, 28, "plain", False),
    "depalm-xattn-narrow": (4, 17, 28, "none", False),
    "depalm-rand": (1, 0, 0, "plain", False),
    "depalm-epalm": (6, 23, 28, "plain", False),
    "mapl": (1, 0, 0, "none", False),
    "table9/1-12-to-12-23": (12, 11, 22, "mlp", False),
    "table9/6-12-to-1-23": (6, 0, 22, "mlp", False),
    "table9/12-to-1": (1, 0, 0, "mlp", False),
    "table14/prompt-12-to-1": (1, 0, 0, "mlp", False),
    "table14/prompt-12-to-1-31": (1, 0, 30, "mlp", False),
    "table14/prompt-12-to-19-31": (1, 19, 30, "mlp", False),
    "table14/prompt-6-12-to-19-31": (6, 19, 30, "mlp", False),
    "table14/adapters-12-to-1": (1, 0, 0, "none", True),
    "table14/adapters-12-to-1-31": (1, 0, 30, "none", True),
    "table14/adapters-12-to-19-31": (1, 19, 30, "none", True),
    "audio-adapter": (1, 0, 0, "none", True),
    "late-adapter": (1, 19, 30, "none", True),
    "deep-prompt": (6, 19, 30, "mlp", False),
    "table15/epalm-pt": (6, 19, 30, "mlp", False),
    "table15/epalm": (6, 19, 30, "mlp", False),
    "figure4/opt-125m": (6, 5, 10, "mlp", False),
    "figure4/opt-1.3b": (6, 11, 22, "mlp", False),
    "figure4/opt-2.7b": (6, 19, 30, "mlp", False),
    "figure4/opt-6.7b": (6, 19, 30, "mlp", False),
    "figure5/vit-s-16": (6, 19, 30, "mlp", False),
    "figure5/vit-b-32": (6, 19, 30, "mlp", False),
    "figure5/vit-l-16": (6, 19, 30, "mlp", False),
    "figure5/vit-l-32": (6, 19, 30, "mlp", False),
    "figure3/epalm-lin": (6, 11, 22, "none", False),
    "figure3/epalm-pt": (6, 11, 22, "mlp", False),
    "figure3/epalm-ada": (6, 11, 22, "none", True),
    "figure3/limber": (1, 0, 0, "none", False),
    "figure3/promptfuse": (1, 0, 0, "mlp", False),
    "figure3/magma": (1, 0, 0, "none", True),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_figures_3_to_5_and_tables_9_14_and_15(name: str) -> None:
    levels, first, last, prompt, adapters = ROWS[name]
    method, _, _ = built(name)
    (modality,) = method.shapes
    layers = method.shapes[modality].n_layers
    assert method.levels(modality) == list(range(layers - levels, layers))
    assert list(method.injected) == list(range(first, last + 1))
    assert set(method.injected.values()) == set(range(levels))
    assert (method.options.prompt, method.options.adapters) == (prompt, adapters)


@pytest.mark.parametrize(("name", "parts"), [("lm", {"lm"}), ("lm-encoder", {"lm", "image"})])
def test_table_12_trains_what_it_says(name: str, parts: set[str]) -> None:
    method, _, _ = built(f"table12/{name}")
    assert set(method.unfrozen) == parts
    rates = {group["name"]: group.get("lr") for group in method.param_groups()}
    assert rates == {"connector": None, "prompt": None, **{f"unfrozen {part}": 1e-7 for part in parts}}


def listed() -> dict[str, dict[str, Any]]:
    """The rows of the page's table of methods."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    keys = ("method", "trains", "where", "trained", "share", "recipe", "paper")
    return {row[0].strip("`"): dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)}


def test_the_page_lists_every_method() -> None:
    assert set(listed()) == set(leaves("methods"))


@pytest.mark.parametrize("name", listed())
def test_the_page_tells_the_truth(name: str) -> None:
    line = listed()[name]
    recipe = line["recipe"].strip("`")
    assert load_recipe(recipe).method.name == name
    method, trained, total = built(recipe.removeprefix("paper/"))
    assert int(line["trained"].replace(",", "")) == trained
    assert line["share"] == f"{100 * trained / total:.2f} %"
    touched = {layer.layer for layer in method.sites() if re.match("slot `", layer.where)}
    assert ("at the input" in line["where"].split(";")[0]) == (touched == {0})
    assert ("adapters" in line["where"]) == method.options.adapters
