"""From a recipe to a model: loads the frozen parts and puts the method on them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from perceptune import assets
from perceptune.anatomy import attention_for
from perceptune.config import Recipe, load_recipe, validate
from perceptune.encoders._fit import fit
from perceptune.encoders.base import Encoder, load_encoder
from perceptune.errors import UserError, nearest
from perceptune.freezing import freeze
from perceptune.lm import FrozenLM
from perceptune.methods.base import EncoderShape, Method
from perceptune.model import AdaptedModel
from perceptune.plugins import leaf
from perceptune.quantized import keep_differentiable, quantization
from perceptune.sections import DecodeConfig, EncoderConfig, LMConfig
from perceptune.text import TextFormat

# What `default` stands for.
DEFAULT_LM = "smollm2-135m-instruct"
# The image encoder serves the others, too: averaged over frames, shown pictures of sounds.
DEFAULT_ENCODERS = dict.fromkeys(("image", "video", "audio"), "dinov2-small")
CONFIGS = Path(__file__).parent / "configs"


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
    return AdaptedModel(recipe, lm, encoders, method, text)


def build_method(recipe: Recipe, lm: FrozenLM, encoders: dict[str, Encoder]) -> Method:
    """The recipe's method for these frozen parts, freshly initialised."""
    shapes = {name: EncoderShape(encoder.n_layers, encoder.dim) for name, encoder in encoders.items()}
    method: Method = leaf("methods", recipe.method.name).module.METHOD(method_options(recipe), lm, shapes)
    _remember_base(lm, encoders, method)
    method.take_over(lm, encoders)
    return method


def method_options(recipe: Recipe) -> Any:
    """All options of the recipe's method: its variant's and the recipe's own."""
    found = leaf("methods", recipe.method.name)
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

    where = _resolve(config.id, DEFAULT_LM, meta)
    with _loading(f"lm `{config.id}`"):
        published = _hf_config(where, config.revision)
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
            _require_complete(config.id, info)
            keep_differentiable(model)
    # Decoding is the recipe's: sampling settings stored beside a checkpoint must not leak into it.
    model.generation_config = GenerationConfig()
    lm = FrozenLM(model, layers=config.layers)
    if not meta:
        lm.check()
    return lm


def load_text(recipe: Recipe, lm: FrozenLM) -> TextFormat:
    """The recipe's template with the LM's tokenizer."""
    from transformers import AutoTokenizer

    with _loading(f"tokenizer of lm `{recipe.lm.id}`"):
        tokenizer = AutoTokenizer.from_pretrained(
            _resolve(recipe.lm.id, DEFAULT_LM, False), revision=recipe.lm.revision
        )
    rows = lm.model.get_input_embeddings().weight.shape[0]
    room = getattr(lm.config, "max_position_embeddings", None)  # positions the LM knows, generated ones included
    longest = None if room is None else room - _most_new(recipe.decode, room)
    return TextFormat(tokenizer, recipe.text, vocabulary=rows, pad_token=recipe.lm.pad_token, longest=longest)


def _most_new(decode: DecodeConfig, room: int) -> int:
    """Positions to be left for the answer of the longest prompt."""
    if decode.max_length is None:
        return decode.max_new_tokens
    if decode.max_length > room:
        raise UserError(f"decode.max_length is {decode.max_length}, but the LM has {room} positions")
    return 1


def load_encoder_of(modality: str, config: EncoderConfig, meta: bool = False) -> Encoder:
    """The encoder that a recipe names for a modality."""
    if config.id == "default" and modality not in DEFAULT_ENCODERS:
        raise UserError(f"encoders.{modality}: there is no default encoder for this modality; name one by `id`")
    where = _resolve(config.id, DEFAULT_ENCODERS.get(modality, ""), meta)
    with _loading(f"encoders.{modality} `{config.id}`"):
        return fit(load_encoder(where, meta=meta, **config.model_dump(exclude={"id", "views"})), modality, config)


def _resolve(name: str, default: str, meta: bool) -> str:
    """A folder or hub id for a name; `default` and the assets' names are fetched when absent."""
    asset = default if name == "default" else name
    if meta and (published := CONFIGS / f"{asset.replace('/', '--')}.json").is_file():
        return str(published)
    if asset in assets.ASSETS:
        return str(assets.path(asset))
    if name.startswith((".", "/", "~")):
        place = Path(name).expanduser()
        if not place.exists():
            siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise UserError(f"no model folder or file `{name}`{nearest(place.name, siblings)}")
        return str(place)
    return name


def _hf_config(where: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    if where.endswith(".json"):
        data = json.loads(Path(where).read_text(encoding="utf-8"))
        return AutoConfig.for_model(data.pop("model_type"), **data)
    return AutoConfig.from_pretrained(where, revision=revision)


@contextlib.contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turns what transformers raises for a wrong name or an unfit model into one line; keeps its bars quiet."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} cannot be loaded: {first_line}") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def _require_complete(name: str, info: dict[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in info.get(kind, ())):
            raise UserError(
                f"lm `{name}`: its weights are incomplete: {len(keys)} {kind.replace('_', ' ')}, first `{keys[0]}`"
            )
