"""Frozen encoders: the loader, and the classes and functions for leaf files."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from perceptune.config.registry import leaves
from perceptune.config.schema import EncoderConfig
from perceptune.encoders._audio import AudioEncoder

# Leaves import from here.
from perceptune.encoders._blip import BlipVision
from perceptune.encoders._blocks import BlockEncoder, BlockParts
from perceptune.encoders._checkpoints import build_tower, read_preprocessor, settings_of
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._fit import fit
from perceptune.encoders._images import (
    BICUBIC,
    BILINEAR,
    IMAGENET,
    INCEPTION,
    OPENAI,
    PREPROCESSOR_DEFAULTS,
    ImageEncoder,
    ViTEncoder,
    transform_of,
)
from perceptune.encoders._stage_means import pooled_levels
from perceptune.encoders._tokens import TokenSelection, describe_selection, grid_means, grid_side
from perceptune.encoders._videos import VideoEncoder
from perceptune.errors import UserError
from perceptune.utils.model_kinds import describe_vlm, part_of


def load_encoder(id_or_path: str | Path, *, meta: bool = False, **options: Any) -> Encoder:
    """Load the frozen encoder in a Hugging Face folder or repository.

    `options` are the keys of a recipe's `encoders.MODALITY` (`EncoderConfig`); they override the checkpoint's
    preprocessing. With `meta` only the config is read (from a folder or a JSON file), and the parameters are on the
    meta device. Raises `UserError` for an unsupported model type or weights that do not fit exactly.
    """
    source, given = str(id_or_path), EncoderConfig(**options)
    family, config = _read_config(source, given.revision)
    encoder = family.read(source, config, given, meta)
    if isinstance(encoder, BlockEncoder):
        encoder.uses_norm = given.norm == "auto"
    return encoder


def weight_files() -> tuple[str, ...]:
    """Return the suffixes of single files that contain an encoder's weights and define its config."""
    return tuple(suffix for leaf in leaves("encoders").values() for suffix in getattr(leaf.module, "SUFFIXES", ()))


def _read_config(source: str, revision: str | None) -> tuple[type[Encoder], Any]:
    """Return the leaf class for a checkpoint, and the config of its tower."""
    for leaf in leaves("encoders").values():
        if source.endswith(tuple(getattr(leaf.module, "SUFFIXES", ()))):  # weights, from which the config follows
            return leaf.module.ENCODER, None
    try:
        entries, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        kind = str(entries.get("model_type"))
        known = {kind: leaf.module for leaf in leaves("encoders").values() for kind in leaf.module.MODEL_TYPES}
        if kind not in known:
            if vlm := describe_vlm(entries):
                part = part_of(entries, "vision_config")
                raise UserError(f"{source}: {vlm}, not an encoder: name the image encoder inside it {part}".rstrip())
            # The name was not typed by a user, so suggesting the nearest one would not help.
            raise UserError(f"{source}: no encoder for model type `{kind}`; known are {', '.join(sorted(known))}")
        config = CONFIG_MAPPING[kind].from_dict(entries)
    except (OSError, StrictDataclassError) as error:
        raise UserError(f"{source}: no usable config ({' '.join(str(error).split())})") from error
    family: type[Encoder] = known[kind].ENCODER
    return family, family.prepare(config)
