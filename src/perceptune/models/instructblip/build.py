"""Build a model from a recipe with `backbone: instructblip`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from perceptune.config.recipe import Recipe
from perceptune.encoders.base import BlipVision, Encoder, fit
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError
from perceptune.lm.frozen_blip import FrozenBlip
from perceptune.lm.quantization import load_frozen
from perceptune.methods.freeze import freeze
from perceptune.methods.qformer.base import QFormerMethod
from perceptune.models.backbone import Backbone, method_leaf, method_options
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.instructblip.text_format import BlipText, Instructions
from perceptune.models.pretrained import load_tokenizer, loading, read_config, resolve

CLASSES = {"instructblip": "InstructBlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"}
NOT_QUANTIZED = ("vision_model", "qformer", "language_projection", "lm_head")  # only the LM's blocks are quantised
QFORMER_TOKENIZER = "qformer_tokenizer"  # folder name in transformers' processor


def build_instructblip(
    recipe: Recipe, *, dtype: str = "float32", meta: bool = False, parts: Any = None,
    make_method: Callable[[FrozenBlip], QFormerMethod] | None = None,
) -> InstructBlipModel:  # fmt: skip
    """Build the model of a recipe, untrained; see `models.build.build`. `parts` are not used.

    `make_method` makes another method than the recipe names.

    `dtype` is that of the LM; the ViT's is in the recipe, the Q-Former's float32. Raises `UserError` for a checkpoint
    of another kind, incomplete weights or a missing tokenizer.
    """
    model, where = load_instructblip(recipe, dtype=dtype, meta=meta)
    vision = _taken_out(recipe, model, where)
    blip = FrozenBlip(model, vision.n_tokens - 1)  # without [CLS]
    if not meta:
        blip.fingerprint  # noqa: B018  (a method may train what it is taken of)
        blip.check()
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)  # the method's initial weights depend on the seed alone
        make = make_method or partial(method_leaf(recipe).module.METHOD, method_options(recipe))
        method: QFormerMethod = make(blip)
    method.unfreeze(blip)
    freeze(method, recipe.train.freeze)
    text = None if meta else load_blip_text(recipe, blip, method.instructions)
    return InstructBlipModel(recipe, blip, vision, method, text)


def load_instructblip(recipe: Recipe, *, dtype: str, meta: bool) -> tuple[nn.Module, str]:
    """Return the model in transformers' class, and its location."""
    import transformers

    _require_fit(recipe)
    config = recipe.lm
    where = resolve(config.id, "", meta)
    with loading(f"lm `{config.id}`", config.id):
        published = read_config(where, config.revision)
        if published.model_type not in CLASSES:
            raise UserError(
                f"lm `{config.id}` is of model type `{published.model_type}`: `backbone: {recipe.backbone}` takes "
                f"{' or '.join(f'`{name}`' for name in CLASSES)}"
            )
        kind: Any = getattr(transformers, CLASSES[published.model_type])
        if meta:
            with torch.device("meta"):
                return kind._from_config(published, attn_implementation=config.attention), where
        model = load_frozen(
            kind, config, where, getattr(torch, dtype), skip=NOT_QUANTIZED, attn_implementation=config.attention,
            dtype=torch.float32,
        )  # fmt: skip
    model.language_model.to(getattr(torch, dtype))
    model.vision_model.to(getattr(torch, recipe.encoders["image"].dtype))
    # The recipe sets decoding: settings stored beside a checkpoint must not change it.
    model.generation_config = model.language_model.generation_config = transformers.GenerationConfig()
    return model, where


def build_stores(recipe: Recipe, device: torch.device) -> dict[str, FeatureStore]:
    """Build the feature cache of the ViT, which is loaded alone."""
    model, where = load_instructblip(recipe, dtype="float32", meta=False)
    return {"image": InstructBlipModel.store_of(recipe, _taken_out(recipe, model, where).to(device))}


def load_blip_text(recipe: Recipe, blip: FrozenBlip, instructions: Instructions) -> BlipText:
    """Return the recipe's template with the tokenizers of LM and Q-Former."""
    config = recipe.lm
    where = resolve(config.id, "", False)
    tokenizer = load_tokenizer(config.id, where, config.revision)
    reader = None
    if blip.reads_instructions:
        reader = _qformer_tokenizer(recipe, where, blip)
    room = getattr(blip.language_model.config, "max_position_embeddings", None)
    longest = None if room is None else room - blip.n_queries - recipe.decode.most_new(room)
    return BlipText(tokenizer, reader, recipe.text, blip, instructions, pad_token=config.pad_token, longest=longest)


def _qformer_tokenizer(recipe: Recipe, where: str, blip: FrozenBlip) -> Any:
    from transformers import AutoTokenizer

    name = f"{recipe.lm.id}/{QFORMER_TOKENIZER}"
    if Path(where).is_dir() and not (Path(where) / QFORMER_TOKENIZER).is_dir():
        raise UserError(
            f"lm `{recipe.lm.id}` has no folder `{QFORMER_TOKENIZER}`: an InstructBLIP's Q-Former reads the question "
            "with a tokenizer of its own, which transformers' `InstructBlipProcessor.save_pretrained` puts there"
        )
    with loading(f"tokenizer of the Q-Former `{name}`"):
        reader = AutoTokenizer.from_pretrained(where, subfolder=QFORMER_TOKENIZER, revision=recipe.lm.revision)
    rows = blip.qformer.get_input_embeddings().weight.shape[0]
    if len(reader) > rows:
        raise UserError(f"`{name}` has {len(reader)} tokens, the Q-Former embeds {rows}: it belongs to another model")
    return reader


def _taken_out(recipe: Recipe, model: Any, where: str) -> Encoder:
    """Remove the ViT from the model and return it as an encoder."""
    tower, options = model.vision_model, recipe.encoders["image"]
    del model.vision_model
    return fit(BlipVision.of(tower, where, options), "image", options)


def _require_fit(recipe: Recipe) -> None:
    """Raise `UserError` for keys that do not apply to this backbone."""
    name = f"`backbone: {recipe.backbone}`"
    others: Sequence[str] = [modality for modality in recipe.encoders if modality != "image"]
    if others or "image" not in recipe.encoders:
        raise UserError(f"encoders: {name} has an image encoder of its own and no other")
    if recipe.encoders["image"].id != "default":
        raise UserError(f"encoders.image.id: {name} brings its own ViT; leave `id` out")
    if recipe.encoders["image"].max_media > 1:
        raise UserError(f"encoders.image.max_media: {name} takes one image a sample; `backbone: splice` takes several")
    if recipe.text.is_chat:
        raise UserError(f"text.template: `chat` is not for {name}; write a template with {{prompt}}")
    if recipe.lm.id == "default":
        raise UserError(f"lm: {name} needs an InstructBLIP or BLIP-2: name its folder or Hugging Face id")
    for key in ("layers", "base"):
        if getattr(recipe.lm, key) is not None:
            raise UserError(f"lm.{key}: not for {name}")
    if recipe.decode.length_normalization != "answer":
        raise UserError(f"decode.length_normalization: `total` is not for {name}; choose `answer`")


def _text_of(model: InstructBlipModel) -> BlipText:
    return load_blip_text(model.recipe, model.blip, model.method.instructions)


INSTRUCTBLIP = Backbone(
    build=build_instructblip,
    build_lm=lambda recipe: cast(Any, load_instructblip(recipe, dtype="float32", meta=True)[0]).language_model,
    build_encoder=lambda recipe, modality: cast(Encoder, build_instructblip(recipe, meta=True).encoders[modality]),
    build_stores=build_stores,
    build_text=lambda recipe: _text_of(build_instructblip(recipe, meta=True)),
    text_of=_text_of,
    can_rank=False,
    shares_base=False,
)
