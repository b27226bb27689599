"""Tiny random checkpoints of every encoder family, as transformers saves them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import transformers
from PIL import Image

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IDS = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}


def full(kind: str) -> dict[str, Any]:
    """A config with both towers."""
    return {
        "text_config": {"model_type": f"{kind}_text_model", **TEXT, **IDS},
        "vision_config": {"model_type": f"{kind}_vision_model", **SIZE, "intermediate_size": 64},
    }


# The name of a case, the class that holds the tower, the class whose checkpoint is read, its config.
CASES: dict[str, tuple[str, str, Any]] = {
    "vit": ("ViTModel", "ViTModel", transformers.ViTConfig(**SIZE, intermediate_size=64)),
    "vit-classifier": ("ViTModel", "ViTForImageClassification", transformers.ViTConfig(**SIZE, intermediate_size=64)),
    "deit": ("DeiTModel", "DeiTModel", transformers.DeiTConfig(**SIZE, intermediate_size=64)),
    "dinov2": ("Dinov2Model", "Dinov2Model", transformers.Dinov2Config(**SIZE)),
    "dinov2-swiglu": ("Dinov2Model", "Dinov2Model", transformers.Dinov2Config(**SIZE, use_swiglu_ffn=True)),
    "dinov2-registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersModel",
        transformers.Dinov2WithRegistersConfig(**SIZE),
    ),
    "clip": ("CLIPVisionModel", "CLIPModel", transformers.CLIPConfig(**full("clip"))),
    "clip-tower": ("CLIPVisionModel", "CLIPVisionModel", transformers.CLIPVisionConfig(**SIZE, intermediate_size=64)),
    "clip-projection": (
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
        transformers.CLIPVisionConfig(**SIZE, intermediate_size=64),
    ),
    "siglip": ("SiglipVisionModel", "SiglipModel", transformers.SiglipConfig(**full("siglip"))),
    "siglip-tower": (
        "SiglipVisionModel",
        "SiglipVisionModel",
        transformers.SiglipVisionConfig(**SIZE, intermediate_size=64),
    ),
}
CLIP: dict[str, Any] = {**SIZE, "intermediate_size": 64, "num_frames": 4}
# Encoders of clips: the class that holds the tower, the class whose checkpoint is read, its config.
VIDEO_CASES: dict[str, tuple[str, str, Any]] = {
    "timesformer": ("TimesformerModel", "TimesformerModel", transformers.TimesformerConfig(**CLIP)),
    "timesformer-classifier": (
        "TimesformerModel",
        "TimesformerForVideoClassification",
        transformers.TimesformerConfig(**CLIP),
    ),
    "videomae": ("VideoMAEModel", "VideoMAEModel", transformers.VideoMAEConfig(**CLIP, use_mean_pooling=False)),
    "videomae-classifier": (
        "VideoMAEModel",
        "VideoMAEForVideoClassification",
        transformers.VideoMAEConfig(**CLIP),
    ),
    "videomae-pretraining": (
        "VideoMAEModel",
        "VideoMAEForPreTraining",
        transformers.VideoMAEConfig(
            **CLIP, use_mean_pooling=False, decoder_hidden_size=16, decoder_num_attention_heads=2,
            decoder_num_hidden_layers=1, decoder_intermediate_size=16,
        ),
    ),
    "vivit": (
        "VivitModel",
        "VivitModel",
        transformers.VivitConfig(**{k: v for k, v in CLIP.items() if k != "patch_size"}, tubelet_size=[2, 8, 8]),
    ),
}  # fmt: skip
WIDTHS: dict[str, Any] = {"depths": [1, 2, 1], "hidden_sizes": [8, 12, 20], "num_stages": 3}
SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 4,
}  # fmt: skip
# Encoders in stages, as above.
STAGED_CASES: dict[str, tuple[str, str, Any]] = {
    "swin": ("SwinModel", "SwinModel", transformers.SwinConfig(**SWIN)),
    "swin-classifier": ("SwinModel", "SwinForImageClassification", transformers.SwinConfig(**SWIN)),
    "swinv2": ("Swinv2Model", "Swinv2Model", transformers.Swinv2Config(**SWIN)),
    "convnext": ("ConvNextModel", "ConvNextModel", transformers.ConvNextConfig(**WIDTHS)),
    "convnext-classifier": ("ConvNextModel", "ConvNextForImageClassification", transformers.ConvNextConfig(**WIDTHS)),
    "convnextv2": ("ConvNextV2Model", "ConvNextV2Model", transformers.ConvNextV2Config(**WIDTHS)),
    "resnet": (
        "ResNetModel",
        "ResNetForImageClassification",
        transformers.ResNetConfig(embedding_size=8, depths=[1, 2, 1], hidden_sizes=[8, 12, 20]),
    ),
}
SQUASHED = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def photo(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX).save(buffer, "PNG")
    return buffer.getvalue()
