"""What a run must be to fit LLaVA's layout: all tokens of one encoder level, through a small map, in the LM's text."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from perceptune.config.recipe import Recipe
from perceptune.encoders.base import ViTEncoder
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots.base import InjectionOptions
from perceptune.models.backbone import method_options
from perceptune.models.slots.model import SlotModel

MAPPERS = ("linear", "low-rank", "mlp")
# Towers whose `hidden_states` are the outputs of their blocks. Those marked False cannot interpolate their position
# embeddings in LLaVA, which does not ask them to.
TOWERS = {
    "clip_vision_model": False, "dinov2": True, "dinov2_with_registers": True, "siglip_vision_model": False,
    "vit": False, "deit": False,
}  # fmt: skip
# Options that leave no parts behind, and `peft`, whose layers are merged into the LM's weights.
_UNDERSTOOD = {*InjectionOptions.model_fields, "peft"}


def require_recipe(recipe: Recipe) -> None:
    """Raise `UserError` with everything in a recipe that LLaVA's layout has no place for; loads nothing."""
    _refuse(_lacks_of_recipe(recipe))


def require_model(model: SlotModel) -> None:
    """Raise `UserError` for an encoder or LM that transformers' LLaVA does not run as this model does."""
    _refuse([*_lacks_of_encoder(model.encoders["image"]), *_lacks_of_lm(model.lm)])


def _refuse(reasons: Iterable[str]) -> None:
    if found := list(reasons):
        raise UserError(f"LLaVA's layout has no place for this run: {'; '.join(found)}")


def _lacks_of_recipe(recipe: Recipe) -> Iterator[str]:
    if recipe.backbone != "splice":
        yield (
            f"`backbone: {recipe.backbone}` has a Q-Former between encoder and LM; `perceptune export-instructblip` "
            "writes its layout"
        )
        return
    if list(recipe.encoders) != ["image"]:
        yield f"`encoders` are of {', '.join(recipe.encoders)}, and LLaVA has one of images"
    elif recipe.encoders["image"].norm != "none":
        yield "`encoders.image.norm` is auto, and LLaVA reads levels before the encoder's final norm: `norm: none`"
    if recipe.lm.quantization is not None:
        yield f"`lm.quantization` is {recipe.lm.quantization}, and the LM's weights are written as they are"
    if recipe.text.template.count("{prompt}") > 1:
        yield "`text.template` has {prompt} more than once"
    yield from _lacks_of_method(recipe.method.name, method_options(recipe))


def _lacks_of_method(name: str, options: Any) -> Iterator[str]:
    own = sorted(type(options).model_fields.keys() - _UNDERSTOOD)
    if own:
        yield f"method `{name}` has parts of its own in the LM (`{own[0]}`)"
    if not isinstance(options, InjectionOptions):
        return
    layers = {options.first, options.last} if options.inject is None else {*options.inject}
    if layers != {0}:
        yield f"method `{name}` injects into later layers, and LLaVA's tokens enter at the input: `first: 0, last: 0`"
    if (levels := _count_levels(options)) != 1:
        yield f"it has {levels} encoder levels, and LLaVA one: `n_levels: 1`"
    if options.tokens != "all":
        yield f"`method.tokens` is {options.tokens}, and LLaVA takes every token: `tokens: all`"
    if options.slot_positions != "sequential":
        yield "its slots have no places in the text, as LLaVA's have: `slot_positions: sequential`"
    if options.mapper not in MAPPERS:
        yield f"`method.mapper` is {options.mapper}, and LLaVA's connector is one of {', '.join(MAPPERS)}"
    if options.prompt != "none":
        yield "it has a soft prompt: `prompt: none`"
    if options.adapters:
        yield "it has adapters in the LM"
    for key in ("tune_norms", "tune_biases", "per_layer"):
        if getattr(options, key) != "none":
            yield f"`method.{key}` is {getattr(options, key)}, and LLaVA has no such parts"


def _count_levels(options: InjectionOptions) -> int:
    if options.inject is not None:
        return len({*options.inject.values()})
    return options.n_levels if options.levels is None else len(options.levels)


def _lacks_of_encoder(encoder: nn.Module) -> Iterator[str]:
    if not isinstance(encoder, ViTEncoder):
        yield f"its encoder is {type(encoder).__name__}, and LLaVA's vision tower has one grid of patches"
        return
    config: Any = encoder.tower.config
    if config.model_type not in TOWERS:
        yield f"its encoder is of type {config.model_type}; LLaVA's tower is tried with {', '.join(TOWERS)}"
        return
    height, width = encoder.transform.size
    native = config.image_size
    if not TOWERS[config.model_type] and (height, width) != (native, native):
        yield (
            f"its images have {height} x {width} pixels, and LLaVA does not interpolate the position embeddings of "
            f"{config.model_type}, which are for {native}: `encoders.image.size: {native}`"
        )


def _lacks_of_lm(lm: FrozenLM) -> Iterator[str]:
    kind, head, width = type(lm.model).__name__, lm.model.get_output_embeddings(), lm.config.hidden_size
    if not isinstance(head, nn.Linear) or head.bias is not None:
        yield f"{kind} has a bias in its head, and LLaVA's has none"
    elif head.in_features != width or lm.model.get_input_embeddings().weight.shape[1] != width:
        yield f"{kind} has embeddings of another width than its hidden size of {width}"
    if getattr(lm.config, "final_logit_softcapping", None):
        yield f"{kind} caps its logits (`final_logit_softcapping`), and LLaVA does not"
