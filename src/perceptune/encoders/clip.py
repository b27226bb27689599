"""The image tower of CLIP."""

from typing import Any, ClassVar

from torch import Tensor

from perceptune.encoders.base import BICUBIC, OPENAI, BlockParts, ViTEncoder


class Clip(ViTEncoder):
    """CLIP's image tower; [CLS] is token 0. Whole checkpoints load too; text tower and projections are not read."""

    MODELS: ClassVar = {"clip_vision_model": "CLIPVisionModel"}
    BLOCKS = "encoder.layers"
    PARTS = BlockParts(("layer_norm1", "layer_norm2"), "self_attn", "out_proj")
    NORM = "post_layernorm"
    UNUSED = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "classifier.")

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return CLIP's preprocessing: shortest edge resized to the model's size, centre crop."""
        side = config.image_size
        crop = {"do_center_crop": True, "crop_size": side, "default_to_square": False}
        return {"size": side, "resample": BICUBIC, **crop, **OPENAI}

    def embed(self, x: Tensor) -> Tensor:
        """Embed images as (B, T, dim), after CLIP's norm before the blocks."""
        return self.tower.pre_layrnorm(self.tower.embeddings(x, interpolate_pos_encoding=True))


ENCODER = Clip
MODEL_TYPES = ("clip", *ENCODER.MODELS)
