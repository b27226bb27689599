"""Build a slot model from a recipe with `backbone: splice`: frozen encoders and LM, a method, and the text format."""

from collections.abc import Mapping
from typing import Protocol

import torch

from perceptune.config.recipe import Recipe
from perceptune.config.registry import leaf
from perceptune.config.schema import EncoderConfig, LMConfig
from perceptune.encoders.base import Encoder, fit, load_encoder, weight_files
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError, error_prefix
from perceptune.lm.architectures import attention_for
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.probe import probe
from perceptune.methods.freeze import freeze
from perceptune.methods.slots.base import EncoderShape, Method
from perceptune.models.backbone import Backbone, method_leaf, method_options
from perceptune.models.lm_source import find_lm
from perceptune.models.pretrained import DEFAULT_ENCODERS, explaining_quantization, loading, resolve
from perceptune.models.slots.model import SlotModel, feature_stores
from perceptune.models.text_format import TextFormat
from perceptune.models.weight_files import require_weights
from perceptune.utils.model_kinds import why_not_causal


class FrozenParts(Protocol):
    """Source of frozen parts for `build` in place of `load_lm` and `load_encoder_of`; may share them between models."""

    def lm(self, config: LMConfig, dtype: str) -> FrozenLM: ...

    def encoder(self, modality: str, config: EncoderConfig) -> Encoder: ...


def build_slot_model(
    recipe: Recipe, *, dtype: str = "float32", meta: bool = False, parts: FrozenParts | None = None
) -> SlotModel:
    """Build the model of a recipe, untrained; see `models.build.build`."""
    lm = load_lm(recipe.lm, dtype=dtype, meta=meta) if parts is None else parts.lm(recipe.lm, dtype)
    encoders = {
        name: load_encoder_of(name, config, meta) if parts is None else parts.encoder(name, config)
        for name, config in recipe.encoders.items()
    }
    text = None if meta else load_text(recipe, lm, encoders)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)  # the method's initial weights depend on the seed alone
        method = build_method(recipe, lm, encoders)
    freeze(method, recipe.train.freeze)
    return SlotModel(recipe, lm, encoders, method, text)


def build_method(recipe: Recipe, lm: FrozenLM, encoders: dict[str, Encoder]) -> Method:
    """Return the recipe's method for these frozen parts, freshly initialised.

    Raises `UserError` if the LM is trained and inference would use another dtype than training: better before the
    training than after it.
    """
    shapes = {name: shape_of(encoder, recipe.encoders[name].max_media) for name, encoder in encoders.items()}
    method: Method = leaf("methods", recipe.method.name).module.METHOD(method_options(recipe), lm, shapes)
    for name, encoder in encoders.items():
        with error_prefix(f"encoders.{name} `{recipe.encoders[name].id}`"):
            encoder.count_tokens(method.tokens(name))
    if method.trains_lm and recipe.eval.dtype == "bfloat16":
        raise UserError(f"eval.dtype: {recipe.eval.dtype}, but `method.unfreeze` keeps the LM in float32")
    _remember_base(lm, encoders, method)
    method.unfreeze(lm, encoders)
    return method


def shape_of(encoder: Encoder, max_media: int = 1) -> EncoderShape:
    """Return the shape of an encoder of which a sample has up to `max_media` media."""
    return EncoderShape(
        encoder.n_layers, encoder.dim, max_media, encoder.n_tokens, encoder.n_special, encoder.grid
    )  # fmt: skip


def _remember_base(lm: FrozenLM, encoders: Mapping[str, Encoder], method: Method) -> None:
    """Take the fingerprints of weights that will be trained before training changes them: `load` compares them."""
    if method.trains_lm and lm.device.type != "meta":
        lm.fingerprint  # noqa: B018
    for encoder in encoders.values() if method.trains_encoders else ():
        if next(encoder.parameters()).device.type != "meta":
            _ = encoder.fingerprint


def load_lm(config: LMConfig, *, dtype: str = "float32", meta: bool = False) -> FrozenLM:
    """Load the frozen LM. Raises `UserError` if it is not a decoder-only LM, is not found or lacks weights."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    source, fingerprint = find_lm(config, meta), None
    with loading(source.title, source.name):
        published = source.read_config()
        if why := why_not_causal(published.to_dict()):
            raise UserError(f"lm `{config.id}` is {why}")
        attention, kind = attention_for(published, config.attention), getattr(torch, dtype)
        if meta:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(published, attn_implementation=attention, dtype=kind)
        else:
            require_weights(source.name, source.where)
            with explaining_quantization(config.id, published):
                model, fingerprint = source.load(AutoModelForCausalLM, kind, attention)
    # The recipe sets decoding: sampling settings stored beside a checkpoint must not change it.
    model.generation_config = GenerationConfig()
    lm = FrozenLM(model, layers=config.layers)
    if fingerprint is not None:
        lm.fingerprint = fingerprint
    if not meta:
        lm.capabilities = probe(lm)
    return lm


def load_text(recipe: Recipe, lm: FrozenLM, encoders: Mapping[str, Encoder] | None = None) -> TextFormat:
    """Return the recipe's template with the LM's tokenizer; `encoders` are read from the recipe if not given."""
    tokenizer = find_lm(recipe.lm).load_tokenizer()
    rows = lm.model.get_input_embeddings().weight.shape[0]
    room = getattr(lm.config, "max_position_embeddings", None)  # positions of the LM, for prompt and answer together
    longest = None if room is None else room - recipe.decode.most_new(room)
    return TextFormat(
        tokenizer, recipe.text, vocabulary=rows, pad_token=recipe.lm.pad_token, longest=longest,
        slots_in_text=_slots_in_text(recipe, encoders),
    )  # fmt: skip


def _slots_in_text(recipe: Recipe, encoders: Mapping[str, Encoder] | None) -> dict[str, int]:
    """Return the number of slots of a medium for each modality whose slots stand in the text."""
    options = method_options(recipe)
    if getattr(options, "slot_positions", "zero") == "zero":
        return {}
    if encoders is None:
        encoders = {name: load_encoder_of(name, config, meta=True) for name, config in recipe.encoders.items()}
    method: type[Method] = method_leaf(recipe).module.METHOD
    return {name: method.count_slots(options, shape_of(encoder), name) for name, encoder in encoders.items()}


def load_encoder_of(modality: str, config: EncoderConfig, meta: bool = False) -> Encoder:
    """Load the encoder that a recipe names for a modality."""
    if config.id == "default" and modality not in DEFAULT_ENCODERS:
        raise UserError(f"encoders.{modality}: there is no default encoder for this modality; name one by `id`")
    if meta and config.dtype == "auto":  # nothing is computed, so any dtype will do
        config = config.model_copy(update={"dtype": "float32"})
    where = resolve(config.id, DEFAULT_ENCODERS.get(modality, ""), meta, files=weight_files())
    with loading(f"encoders.{modality} `{config.id}`", config.id):
        if not meta:
            require_weights(config.id, where, pickled=False)
        return fit(
            load_encoder(where, meta=meta, **config.model_dump(exclude={"id", "views", "max_media"})), modality, config
        )


def build_stores(recipe: Recipe, device: torch.device) -> dict[str, FeatureStore]:
    """Build the recipe's feature caches; of the LM only the shape is needed, to determine the levels the method uses.

    Raises `UserError` for a method that trains its encoders.
    """
    encoders = {name: load_encoder_of(name, config).to(device) for name, config in recipe.encoders.items()}
    with torch.device("meta"):
        method = build_method(recipe, load_lm(recipe.lm, meta=True), encoders)
    if method.trains_encoders:
        raise UserError("the recipe trains its encoders (`method.unfreeze`): their features cannot be kept")
    return feature_stores(recipe, encoders, method)


SLOTS = Backbone(
    build=build_slot_model,
    build_lm=lambda recipe: load_lm(recipe.lm, meta=True).model,
    build_encoder=lambda recipe, modality: load_encoder_of(modality, recipe.encoders[modality], meta=True),
    build_stores=build_stores,
    build_text=lambda recipe: load_text(recipe, load_lm(recipe.lm, meta=True)),
    text_of=lambda model: load_text(model.recipe, model.lm, dict(model.encoders.items())),
    can_rank=True,
    shares_base=True,
)
