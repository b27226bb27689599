"""Interface of a backbone to `models.build`: one entry per kind of model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perceptune.config.overrides import METHODS
from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import Leaf, leaf
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.models.base import AdaptedModel
from perceptune.models.text_format import TextFormat


@dataclass(frozen=True)
class Backbone:
    """Constructors of the models of one `backbone`, defined in `build.py` of its folder in `models`."""

    build: Callable[..., AdaptedModel]  # (recipe, *, dtype, meta, parts), before `setup`
    build_lm: Callable[[Recipe], nn.Module]  # transformers' LM, without weights
    build_encoder: Callable[[Recipe, str], Encoder]  # of a modality, without weights
    build_stores: Callable[[Recipe, torch.device], dict[str, FeatureStore]]
    build_text: Callable[[Recipe], TextFormat]  # reads the LM's configuration, not its weights
    text_of: Callable[[Any], TextFormat]  # as the model's recipe requests it now
    can_rank: bool  # whether candidates can be ranked, and tokens scored
    shares_base: bool  # whether several runs may use one copy of the frozen parts


def method_leaf(recipe: Recipe) -> Leaf:
    """Return the leaf of the recipe's method among those of its backbone."""
    return leaf(METHODS[recipe.backbone], recipe.method.name)


def method_options(recipe: Recipe) -> Any:
    """Return all options of the recipe's method: its variant's and the recipe's own."""
    found = method_leaf(recipe)
    given = {**found.defaults, **recipe.method.options()}
    return validate(found.module.METHOD.Options, given, f"method `{recipe.method.name}`")
