"""ViT and DeiT."""

from typing import Any, ClassVar

from perceptune.encoders.base import BICUBIC, BILINEAR, INCEPTION, BlockParts, ViTEncoder


class VisionTransformer(ViTEncoder):
    """ViT or DeiT; [CLS] is token 0. DeiT has a second special token, for distillation."""

    MODELS: ClassVar = {"vit": "ViTModel", "deit": "DeiTModel"}
    BUILD: ClassVar = {"add_pooling_layer": False}
    BLOCKS = "layers"
    PARTS = BlockParts(("layernorm_before", "layernorm_after"), "attention", "o_proj")
    NORM = "layernorm"
    # The pooler, the heads of the classification models, and the decoder and mask of masked-image models.
    UNUSED = (
        "pooler.", "classifier.", "cls_classifier.", "distillation_classifier.", "decoder.",
        "embeddings.mask_token",
    )  # fmt: skip

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """Return 2 for DeiT, else 1."""
        return 2 if config.model_type == "deit" else 1

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the published preprocessing: squash to the model's size; DeiT crops that from 256/224 of its size."""
        side = config.image_size
        if config.model_type == "deit":
            crop = {"do_center_crop": True, "crop_size": side}
            return {"size": side * 256 // 224, "resample": BICUBIC, **crop, **INCEPTION}
        return {"size": side, "resample": BILINEAR, **INCEPTION}


ENCODER = VisionTransformer
MODEL_TYPES = tuple(ENCODER.MODELS)
