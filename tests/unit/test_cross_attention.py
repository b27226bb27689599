"""Counts of gated cross-attention by width, and the options that do not go with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import leaf
from perceptune.config.schema import LMConfig
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.base import count
from perceptune.methods.slots.base import EncoderShape
from perceptune.models.backbone import method_options
from perceptune.models.slots.build import load_lm

LARGE, BASE = ("facebook/opt-6.7b", EncoderShape(24, 1024, n_tokens=257)), ("base", EncoderShape(12, 384, n_tokens=257))
WIDTH = {"mapper_width": 192, "cross_width": 192}


@cache
def lm_of(name: str) -> FrozenLM:
    """An LM without weights; `base` has the shape of SmolLM2-135M."""
    if name != "base":
        return load_lm(LMConfig(id=name), meta=True)
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        config = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
        return FrozenLM(LlamaForCausalLM(config))


def options_of(name: str, **given: Any) -> Any:
    return method_options(validate(Recipe, {"method": {"name": name, **given}}, "recipe.yaml"))


@pytest.mark.parametrize(
    ("name", "given", "large", "small"),
    [
        ("depalm-xattn", {}, 21_060_609, 13_136_449), ("depalm-xattn", WIDTH, 2_248_257, 713_857),
        ("depalm-xattn-narrow", {}, 7_864_332, 1_474_572),
    ],
)  # fmt: skip
def test_counts(name: str, given: dict[str, Any], large: int, small: int) -> None:
    for (lm, shape), expected in ((LARGE, large), (BASE, small)):
        with torch.device("meta"):
            method = leaf("methods", name).module.METHOD(options_of(name, **given), lm_of(lm), {"image": shape})
        assert count(method) == expected


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("depalm-xattn", {"slot_positions": "sequential"}, "no slots of media: leave out `slot_positions`"),
        ("depalm-xattn", {"slot_mask": "official"}, "no slots of media: leave out `slot_mask`"),
        ("depalm-xattn", {"per_layer": "scale-bias"}, "no slots of media: leave out `per_layer`"),
        ("depalm-xattn", {"cross_width": 100}, "`cross_width` 100 cannot be divided by `cross_heads` 8"),
        ("depalm-xattn", {"cross_widht": 64}, "did you mean `cross_width`"),
        ("depalm-xattn-narrow", {"mapper": "qp"}, "maps the encoder's tokens itself: leave out `mapper`"),
        ("depalm-xattn-narrow", {"connector_std": None}, "itself: leave out `connector_std`"),
    ],
)
def test_keys_that_do_not_fit_are_refused(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        options_of(name, **given)
