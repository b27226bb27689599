"""From a recipe to a model: loads the frozen parts and puts the method on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from perceptune.config.overrides import METHODS
from perceptune.config.recipe import Recipe, load_recipe, validate
from perceptune.config.registry import Leaf, leaf
from perceptune.config.schema import EncoderConfig, LMConfig
from perceptune.encoders.base import Encoder, fit, load_encoder, weight_files
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError
from perceptune.lm.architectures import attention_for
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.precision import GAIN, Choice, choose, products_of
from perceptune.lm.probe import probe
from perceptune.lm.quantization import keep_differentiable, quantization
from perceptune.methods.freeze import freeze
from perceptune.methods.slots.base import EncoderShape, Method
from perceptune.models.base import AdaptedModel
from perceptune.models.instructblip.build import build_instructblip, load_blip_text, load_blip_vision, load_instructblip
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.pretrained import load_tokenizer, loading, read_config, resolve
from perceptune.models.slot_model import SlotModel, feature_stores
from perceptune.models.text_format import TextFormat
from perceptune.utils.allocation import keep_freed_memory
from perceptune.utils.devices import default_device, use_full_float32
from perceptune.utils.transformers_loading import require_all_weights

# What `default` stands for.
DEFAULT_LM = "smollm2-135m-instruct"
# The image encoder serves the others, too: averaged over frames, shown spectrograms of audio.
DEFAULT_ENCODERS = dict.fromkeys(("image", "video", "audio"), "dinov2-small")


class FrozenParts(Protocol):
    """Where `build` gets frozen parts from, if not by `load_lm` and `load_encoder_of`: one may lend them to several."""

    def lm(self, config: LMConfig, dtype: str) -> FrozenLM: ...

    def encoder(self, modality: str, config: EncoderConfig) -> Encoder: ...


def build(
    recipe: Recipe | dict[str, Any] | str | Path, *, dtype: str = "float32", meta: bool = False,
    parts: FrozenParts | None = None, ready: bool = True,
) -> AdaptedModel:  # fmt: skip
    """The model of a recipe, untrained: a plain `nn.Module` whose `method.parameters()` are to be trained.

    `dtype` is that of the frozen LM, an encoder's is in the recipe, everything trained is float32. With `meta` no
    weight is loaded: the parts are built on the meta device from their configurations, enough to count and to show.
    Without `ready` the caller moves the model first and calls its `setup` then.
    `init_from` is what `train` does first: here its method is new all the same.
    """
    recipe = load_recipe(recipe) if meta else with_encoder_dtypes(load_recipe(recipe))
    if not meta:
        keep_freed_memory()
    if recipe.backbone == "instructblip":
        found = method_leaf(recipe).module.METHOD
        model: AdaptedModel = build_instructblip(recipe, found, method_options(recipe), dtype=dtype, meta=meta)
    else:
        model = build_slot_model(recipe, dtype=dtype, meta=meta, parts=parts)
    if ready and not meta:
        model.setup()
    return model


def build_to_train(recipe: Recipe, place: Callable[[AdaptedModel], Any] = lambda model: None) -> AdaptedModel:
    """The same in the dtypes that a training would take, placed and as ready as there."""
    settled, _ = settle(recipe)
    model = build(settled, dtype=settled.train.precision, ready=False)
    place(model)
    model.setup(training=True)
    return model


def build_slot_model(
    recipe: Recipe, *, dtype: str = "float32", meta: bool = False, parts: FrozenParts | None = None
) -> SlotModel:
    """The same for `backbone: splice`, before `setup`."""
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
    return SlotModel(recipe, lm, encoders, method, text)


def build_method(recipe: Recipe, lm: FrozenLM, encoders: dict[str, Encoder]) -> Method:
    """The recipe's method for these frozen parts, freshly initialised.

    Raises `UserError` where a trained LM would be asked in another dtype than it was trained in, which is better known
    before the training than after it.
    """
    shapes = {name: EncoderShape(encoder.n_layers, encoder.dim) for name, encoder in encoders.items()}
    method: Method = leaf("methods", recipe.method.name).module.METHOD(method_options(recipe), lm, shapes)
    if method.trains_lm and recipe.eval.dtype == "bfloat16":
        raise UserError(f"eval.dtype: {recipe.eval.dtype}, but `method.unfreeze` keeps the LM in float32")
    _remember_base(lm, encoders, method)
    method.unfreeze(lm, encoders)
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
            _ = encoder.fingerprint


def load_lm(config: LMConfig, *, dtype: str = "float32", meta: bool = False) -> FrozenLM:
    """The frozen LM. Raises `UserError` for what is not a decoder-only LM, cannot be found or lacks weights."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    where = resolve(config.id, DEFAULT_LM, meta)
    with loading(f"lm `{config.id}`", config.id):
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
            require_all_weights(f"lm `{config.id}`", info)
            keep_differentiable(model)
    # Decoding is the recipe's: sampling settings stored beside a checkpoint must not leak into it.
    model.generation_config = GenerationConfig()
    lm = FrozenLM(model, layers=config.layers)
    if not meta:
        lm.capabilities = probe(lm)
    return lm


def text_of(model: AdaptedModel) -> TextFormat:
    """Template and tokenizer that a model's recipe asks for now."""
    if isinstance(model, InstructBlipModel):
        return load_blip_text(model.recipe, model.blip, model.method.instructions)
    assert isinstance(model, SlotModel)
    return load_text(model.recipe, model.lm)


def text_alone(recipe: Recipe) -> TextFormat:
    """The same without a model: of the LM its configuration is read, and no weights."""
    if recipe.backbone == "instructblip":
        return text_of(build(recipe, meta=True))
    return load_text(recipe, load_lm(recipe.lm, meta=True))


def load_text(recipe: Recipe, lm: FrozenLM) -> TextFormat:
    """The recipe's template with the LM's tokenizer."""
    tokenizer = load_tokenizer(recipe.lm.id, resolve(recipe.lm.id, DEFAULT_LM, False), recipe.lm.revision)
    rows = lm.model.get_input_embeddings().weight.shape[0]
    room = getattr(lm.config, "max_position_embeddings", None)  # positions the LM knows, generated ones included
    longest = None if room is None else room - recipe.decode.most_new(room)
    return TextFormat(tokenizer, recipe.text, vocabulary=rows, pad_token=recipe.lm.pad_token, longest=longest)


def load_encoder_of(modality: str, config: EncoderConfig, meta: bool = False) -> Encoder:
    """The encoder that a recipe names for a modality."""
    if config.id == "default" and modality not in DEFAULT_ENCODERS:
        raise UserError(f"encoders.{modality}: there is no default encoder for this modality; name one by `id`")
    if meta and config.dtype == "auto":  # nothing is computed
        config = config.model_copy(update={"dtype": "float32"})
    where = resolve(config.id, DEFAULT_ENCODERS.get(modality, ""), meta, files=weight_files())
    with loading(f"encoders.{modality} `{config.id}`", config.id):
        return fit(load_encoder(where, meta=meta, **config.model_dump(exclude={"id", "views"})), modality, config)


def encoder_alone(recipe: Recipe, modality: str) -> Encoder:
    """The recipe's encoder of a modality without weights: it loads media as the real one does."""
    if recipe.backbone == "instructblip":
        return cast(Encoder, build(recipe, meta=True).encoders[modality])
    return load_encoder_of(modality, recipe.encoders[modality], meta=True)


def encoder_stores(recipe: Recipe) -> dict[str, FeatureStore]:
    """The recipe's feature caches. Of the LM only the shape is needed, to know which levels the method wants."""
    device, recipe = default_device(), with_encoder_dtypes(recipe)
    use_full_float32(device)
    if recipe.backbone == "instructblip":
        return {"image": InstructBlipModel.store_of(recipe, load_blip_vision(recipe).to(device))}
    encoders = {name: load_encoder_of(name, config).to(device) for name, config in recipe.encoders.items()}
    lm = load_lm(recipe.lm, meta=True)
    with torch.device("meta"):
        method = build_method(recipe, lm, encoders)
    if method.trains_encoders:
        raise UserError("the recipe trains its encoders (`method.unfreeze`): their features cannot be kept")
    return feature_stores(recipe, encoders, method)


def dtypes_of(recipe: Recipe) -> dict[str, str]:
    """The recipe's dtypes by their keys."""
    encoders = {f"encoders.{name}.dtype": config.dtype for name, config in recipe.encoders.items()}
    return {"train.precision": recipe.train.precision, **encoders, "eval.dtype": recipe.eval.dtype}


def choose_dtype(recipe: Recipe, device: torch.device | None = None) -> Choice:
    """What `auto` stands for with this recipe's frozen LM on a device (default: `default_device`)."""
    device = device or default_device()
    if recipe.backbone == "instructblip":
        blip: Any = load_instructblip(recipe, dtype="float32", meta=True)[0]
        lm: Any = blip.language_model
    else:
        lm = load_lm(recipe.lm, meta=True).model
    products = products_of(lm, lm.config.get_text_config())
    # What fits into `packed_memory_mb` is laid out for the CPU, in two copies of two bytes: most of the LM, or little.
    packed = recipe.train.packed_memory_mb * 2**20 >= 2 * products.multiplications
    return choose(products, packed=packed, device=device)


def settle(recipe: Recipe, device: torch.device | None = None) -> tuple[Recipe, Choice | None]:
    """The recipe with a dtype for every `auto`, and how it was chosen; None where nothing was to be chosen.

    What `method.unfreeze` trains is trained in float32 whatever is faster.
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
    """Keys of the dtypes that must be float32 because `method.unfreeze` trains what is held in them."""
    unfrozen = getattr(method_options(recipe), "unfreeze", ())
    keys = {"train.precision", "eval.dtype"} if "lm" in unfrozen else set()
    return keys | ({f"encoders.{name}.dtype" for name in recipe.encoders} if "encoder" in unfrozen else set())


def with_encoder_dtypes(recipe: Recipe) -> Recipe:
    """The same with a dtype for every encoder's `auto`: the LM's is chosen by whoever builds it."""
    return settle(recipe)[0] if any(config.dtype == "auto" for config in recipe.encoders.values()) else recipe


def settle_training(recipe: Recipe, device: torch.device, *, resumed: bool) -> tuple[Recipe, dict[str, str]]:
    """The recipe as a training stores it; its dtypes, and why they are what they are. Says what is slower here.

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
    """A run's recipe with a dtype for `eval.dtype: auto`: the one it was trained in."""
    if recipe.eval.dtype == "auto" and recipe.train.precision != "auto":
        return load_recipe(recipe, [f"eval.dtype={recipe.train.precision}"])
    return settle(recipe, device)[0] if recipe.eval.dtype == "auto" else recipe


def slower_here(recipe: Recipe, choice: Choice) -> str | None:
    """A line on dtypes that the recipe names although its LM is slower in them here; None if there are none.

    float32 for encoders and answers is not meant: there, it is for the sake of exactness.
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
