"""From a recipe to a model: loads the frozen parts and puts the method on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from perceptune.anatomy import attention_for
from perceptune.blip_loading import build_blip, load_blip_text, load_blip_vision
from perceptune.blip_model import BlipModel
from perceptune.config import Recipe, load_recipe, validate
from perceptune.encoders._fit import fit
from perceptune.encoders.base import Encoder, load_encoder
from perceptune.errors import UserError
from perceptune.features import FeatureStore, feature_stores
from perceptune.freezing import freeze
from perceptune.lm import FrozenLM
from perceptune.methods.base import EncoderShape, Method
from perceptune.model import AdaptedModel
from perceptune.plugins import Leaf, leaf
from perceptune.quantized import keep_differentiable, quantization
from perceptune.sections import EncoderConfig, LMConfig
from perceptune.sources import loading, read_config, require_complete, resolve
from perceptune.spliced import SplicedModel
from perceptune.text import TextFormat

# What `default` stands for.
DEFAULT_LM = "smollm2-135m-instruct"
# Which folder of leaves a backbone's methods are in.
METHODS = {"splice": "methods", "instructblip": "qformer_methods"}
# The image encoder serves the others, too: averaged over frames, shown pictures of sounds.
DEFAULT_ENCODERS = dict.fromkeys(("image", "video", "audio"), "dinov2-small")


class FrozenParts(Protocol):
    """Where `build` gets frozen parts from, if not by `load_lm` and `load_encoder_of`: one may lend them to several."""

    def lm(self, config: LMConfig, dtype: str) -> FrozenLM: ...

    def encoder(self, modality: str, config: EncoderConfig) -> Encoder: ...


def build(
    recipe: Recipe | dict[str, Any] | str | Path, *, dtype: str = "float32", meta: bool = False,
    parts: FrozenParts | None = None,
) -> AdaptedModel:  # fmt: skip
    """The model of a recipe, untrained: a plain `nn.Module` whose `method.parameters()` are to be trained.

    `dtype` is that of the frozen LM, an encoder's is in the recipe, everything trained is float32. With `meta` no
    weight is loaded: the parts are built on the meta device from their configurations, enough to count and to show.
    `init_from` is what `train` does first: here its method is new all the same.
    """
    recipe = load_recipe(recipe)
    if recipe.backbone == "instructblip":
        found = method_leaf(recipe).module.METHOD
        return build_blip(recipe, found, method_options(recipe), dtype=dtype, meta=meta)
    return build_spliced(recipe, dtype=dtype, meta=meta, parts=parts)


def build_spliced(
    recipe: Recipe, *, dtype: str = "float32", meta: bool = False, parts: FrozenParts | None = None
) -> SplicedModel:
    """The same for `backbone: splice`."""
    lm = load_lm(recipe.lm, dtype=dtype, meta=meta) if parts is None else parts.lm(recipe.lm, dtype)
    encoders = {
        name: load_encoder_of(name, config, meta) if parts is None else parts.encoder(name, config)
        for name, config in recipe.encoders.items()
    }
    text = None if meta else load_text(recipe, lm)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)  # the method's first weights depend on the seed alone
        method = build_method(recipe, lm, encoders)
    freeze(method, recipe.train.freeze)
    return SplicedModel(recipe, lm, encoders, method, text)


def build_method(recipe: Recipe, lm: FrozenLM, encoders: dict[str, Encoder]) -> Method:
    """The recipe's method for these frozen parts, freshly initialised.

    Raises `UserError` where a trained LM would be asked in another dtype than it was trained in, which is better known
    before the training than after it.
    """
    shapes = {name: EncoderShape(encoder.n_layers, encoder.dim) for name, encoder in encoders.items()}
    method: Method = leaf("methods", recipe.method.name).module.METHOD(method_options(recipe), lm, shapes)
    if method.trains_lm and recipe.eval.dtype != "float32":
        raise UserError(f"eval.dtype: {recipe.eval.dtype}, but `method.unfreeze` keeps the LM in float32")
    _remember_base(lm, encoders, method)
    method.take_over(lm, encoders)
    return method


def method_leaf(recipe: Recipe) -> Leaf:
    """The leaf of the recipe's method among those of its backbone."""
    return leaf(METHODS[recipe.backbone], recipe.method.name)


def method_options(recipe: Recipe) -> Any:
    """All options of the recipe's method: its variant's and the recipe's own."""
    found = method_leaf(recipe)
    given = {**found.defaults, **recipe.method.options()}
    return validate(found.module.METHOD.Options, given, f"method `{recipe.method.name}`")


def _remember_base(lm: FrozenLM, encoders: Mapping[str, Encoder], method: Method) -> None:
    """Takes the fingerprints of what is going to be trained while it is what a run must find when it is loaded."""
    if method.trains_lm and lm.device.type != "meta":
        lm.fingerprint  # noqa: B018
    for encoder in encoders.values() if method.trains_encoders else ():
        if next(encoder.parameters()).device.type != "meta":
            encoder.fingerprint()


def load_lm(config: LMConfig, *, dtype: str = "float32", meta: bool = False) -> FrozenLM:
    """The frozen LM. Raises `UserError` for what is not a decoder-only LM, cannot be found or lacks weights."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    where = resolve(config.id, DEFAULT_LM, meta)
    with loading(f"lm `{config.id}`"):
        published = read_config(where, config.revision)
        kwargs: dict[str, Any] = {
            "attn_implementation": attention_for(published, config.attention), "dtype": getattr(torch, dtype),
        }  # fmt: skip
        if meta:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(published, **kwargs)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, revision=config.revision, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs,
                **quantization(config, kwargs["dtype"]),
            )  # fmt: skip
            model, info = loaded
            require_complete(config.id, info)
            keep_differentiable(model)
    # Decoding is the recipe's: sampling settings stored beside a checkpoint must not leak into it.
    model.generation_config = GenerationConfig()
    lm = FrozenLM(model, layers=config.layers)
    if not meta:
        lm.check()
    return lm


def text_of(model: AdaptedModel) -> TextFormat:
    """Template and tokenizer that a model's recipe asks for now."""
    if isinstance(model, BlipModel):
        return load_blip_text(model.recipe, model.blip, model.method.instructions)
    assert isinstance(model, SplicedModel)
    return load_text(model.recipe, model.lm)


def text_alone(recipe: Recipe) -> TextFormat:
    """The same without a model: of the LM its configuration is read, and no weights."""
    if recipe.backbone == "instructblip":
        return text_of(build(recipe, meta=True))
    return load_text(recipe, load_lm(recipe.lm, meta=True))


def load_text(recipe: Recipe, lm: FrozenLM) -> TextFormat:
    """The recipe's template with the LM's tokenizer."""
    from transformers import AutoTokenizer

    with loading(f"tokenizer of lm `{recipe.lm.id}`"):
        tokenizer = AutoTokenizer.from_pretrained(resolve(recipe.lm.id, DEFAULT_LM, False), revision=recipe.lm.revision)
    rows = lm.model.get_input_embeddings().weight.shape[0]
    room = getattr(lm.config, "max_position_embeddings", None)  # positions the LM knows, generated ones included
    longest = None if room is None else room - recipe.decode.most_new(room)
    return TextFormat(tokenizer, recipe.text, vocabulary=rows, pad_token=recipe.lm.pad_token, longest=longest)


def load_encoder_of(modality: str, config: EncoderConfig, meta: bool = False) -> Encoder:
    """The encoder that a recipe names for a modality."""
    if config.id == "default" and modality not in DEFAULT_ENCODERS:
        raise UserError(f"encoders.{modality}: there is no default encoder for this modality; name one by `id`")
    where = resolve(config.id, DEFAULT_ENCODERS.get(modality, ""), meta)
    with loading(f"encoders.{modality} `{config.id}`"):
        return fit(load_encoder(where, meta=meta, **config.model_dump(exclude={"id", "views"})), modality, config)


def encoder_stores(recipe: Recipe) -> dict[str, FeatureStore]:
    """The recipe's feature caches. Of the LM only the shape is needed, to know which levels the method wants."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.backbone == "instructblip":
        return {"image": BlipModel.store_of(recipe, load_blip_vision(recipe).to(device))}
    encoders = {name: load_encoder_of(name, config).to(device) for name, config in recipe.encoders.items()}
    lm = load_lm(recipe.lm, meta=True)
    with torch.device("meta"):
        method = build_method(recipe, lm, encoders)
    if method.trains_encoders:
        raise UserError("the recipe trains its encoders (`method.unfreeze`): their features cannot be kept")
    return feature_stores(recipe, encoders, method)
