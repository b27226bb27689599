"""Build a model from a recipe: load the frozen parts and attach the method."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perceptune.config.recipe import Recipe, load_recipe
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.lm.precision import GAIN, Choice, choose, products_of
from perceptune.models.backbone import Backbone, method_options
from perceptune.models.base import AdaptedModel
from perceptune.models.instructblip.build import INSTRUCTBLIP
from perceptune.models.slots.build import SLOTS, FrozenParts
from perceptune.models.text_format import TextFormat
from perceptune.utils.allocation import keep_freed_memory
from perceptune.utils.devices import default_device, use_full_float32

BACKBONES: dict[str, Backbone] = {"splice": SLOTS, "instructblip": INSTRUCTBLIP}


def build(
    recipe: Recipe | dict[str, Any] | str | Path, *, dtype: str = "float32", meta: bool = False,
    parts: FrozenParts | None = None, ready: bool = True,
) -> AdaptedModel:  # fmt: skip
    """Build the model of a recipe, untrained: an `nn.Module` whose `method.parameters()` are to be trained.

    `dtype` is that of the frozen LM; an encoder's is in the recipe, and everything trained is float32. With `meta` no
    weight is loaded: the parts are built on the meta device from their configurations, enough to count and to show.
    With `ready=False` the caller moves the model first and then calls its `setup`.
    `init_from` is applied by `train`: here the method is freshly initialised all the same.
    """
    recipe = load_recipe(recipe) if meta else with_encoder_dtypes(load_recipe(recipe))
    if not meta:
        keep_freed_memory()
    model = BACKBONES[recipe.backbone].build(recipe, dtype=dtype, meta=meta, parts=parts)
    if ready and not meta:
        model.setup()
    return model


def build_to_train(recipe: Recipe, place: Callable[[AdaptedModel], Any] = lambda model: None) -> AdaptedModel:
    """Build the model as training does: in its dtypes, placed by `place` and set up."""
    settled, _ = settle(recipe)
    model = build(settled, dtype=settled.train.precision, ready=False)
    place(model)
    model.setup(training=True)
    return model


def text_of(model: AdaptedModel) -> TextFormat:
    """Return the template and tokenizer of a model's current recipe."""
    return BACKBONES[model.recipe.backbone].text_of(model)


def text_alone(recipe: Recipe) -> TextFormat:
    """Return template and tokenizer without a model: reads the LM's configuration, not its weights."""
    return BACKBONES[recipe.backbone].build_text(recipe)


def encoder_alone(recipe: Recipe, modality: str) -> Encoder:
    """Build the recipe's encoder of a modality without weights; it loads media as the real one does."""
    return BACKBONES[recipe.backbone].build_encoder(recipe, modality)


def encoder_stores(recipe: Recipe) -> dict[str, FeatureStore]:
    """Build the recipe's feature caches, with the encoders on the default device."""
    device = default_device()
    use_full_float32(device)
    return BACKBONES[recipe.backbone].build_stores(with_encoder_dtypes(recipe), device)


def dtypes_of(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's dtypes by their keys."""
    encoders = {f"encoders.{name}.dtype": config.dtype for name, config in recipe.encoders.items()}
    return {"train.precision": recipe.train.precision, **encoders, "eval.dtype": recipe.eval.dtype}


def choose_dtype(recipe: Recipe, device: torch.device | None = None) -> Choice:
    """Choose the dtype for `auto` with this recipe's frozen LM on a device (default: `default_device`)."""
    device = device or default_device()
    lm: Any = BACKBONES[recipe.backbone].build_lm(recipe)
    products = products_of(lm, lm.config.get_text_config())
    # As much as `packed_memory_mb` allows is packed, in two copies of two bytes: most of the LM, or little.
    packed = recipe.train.packed_memory_mb * 2**20 >= 2 * products.multiplications
    return choose(products, packed=packed, device=device)


def settle(recipe: Recipe, device: torch.device | None = None) -> tuple[Recipe, Choice | None]:
    """Return the recipe with a dtype for every `auto`, and the choice; None if there was nothing to choose.

    Weights in `method.unfreeze` are trained in float32 whatever is faster.
    """
    wanted = [key for key, value in dtypes_of(recipe).items() if value == "auto"]
    if not wanted:
        return recipe, None
    trained = trained_keys(recipe)
    choice = Choice("float32", "`method.unfreeze` trains in float32")
    if set(wanted) - trained:
        choice = choose_dtype(recipe, device)
    return load_recipe(recipe, [f"{key}={'float32' if key in trained else choice.dtype}" for key in wanted]), choice


def trained_keys(recipe: Recipe) -> set[str]:
    """Return the keys of the dtypes that must be float32 because `method.unfreeze` trains those weights."""
    unfrozen = getattr(method_options(recipe), "unfreeze", ())
    keys = {"train.precision", "eval.dtype"} if "lm" in unfrozen else set()
    return keys | ({f"encoders.{name}.dtype" for name in recipe.encoders} if "encoder" in unfrozen else set())


def with_encoder_dtypes(recipe: Recipe) -> Recipe:
    """Return the recipe with a dtype for every encoder's `auto`; the LM's is chosen by the caller."""
    return settle(recipe)[0] if any(config.dtype == "auto" for config in recipe.encoders.values()) else recipe


def settle_training(recipe: Recipe, device: torch.device, *, resumed: bool) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe as training stores it, its dtypes and their reason; warn about dtypes that are slower here.

    The recipe of a resumed training stays as it was stored.
    """
    if resumed:
        return recipe, dtypes_of(recipe)
    settled, choice = settle(recipe, device)
    choice = choice or choose_dtype(recipe, device)
    if slower := slower_here(recipe, choice):
        print(f"warning: {slower}", file=sys.stderr)
    return settled, {**dtypes_of(settled), "reason": choice.reason}


def settle_answering(recipe: Recipe, device: torch.device | None = None) -> Recipe:
    """Return a run's recipe with a dtype for `eval.dtype: auto`: the one it was trained in."""
    if recipe.eval.dtype == "auto" and recipe.train.precision != "auto":
        return load_recipe(recipe, [f"eval.dtype={recipe.train.precision}"])
    return settle(recipe, device)[0] if recipe.eval.dtype == "auto" else recipe


def slower_here(recipe: Recipe, choice: Choice) -> str | None:
    """Return a warning if the recipe sets a dtype in which its LM is slower here; None otherwise.

    float32 for encoders and answers is exempt: there it is chosen for exactness.
    """
    dtype = "bfloat16" if choice.dtype == "float32" else "float32"
    times = choice.slowness_of(dtype)
    if times is None or times < GAIN:
        return None
    meant = {key for key in dtypes_of(recipe) if dtype == "bfloat16" or key == "train.precision"} - trained_keys(recipe)
    slow = [key for key, value in dtypes_of(recipe).items() if key in meant and value == dtype]
    if not slow:
        return None
    return f"{', '.join(slow)}: {dtype} takes {times:.1f} times as long as {choice.dtype} here; `auto` takes the faster"
