"""DINOv2, with or without registers."""

from typing import Any, ClassVar

from torch import Tensor

from perceptune.encoders.base import BICUBIC, IMAGENET, BlockParts, ViTEncoder


class Dinov2(ViTEncoder):
    """DINOv2; [CLS] is token 0, followed by the registers if there are any."""

    MODELS: ClassVar = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
    BLOCKS = "encoder.layer"
    PARTS = BlockParts(("norm1", "norm2"), "attention", "o_proj", ("layer_scale1", "layer_scale2"))
    NORM = "layernorm"
    UNUSED = ("classifier.", "embeddings.mask_token")

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Return the config without the mask token of pretraining, which the variant with registers requires."""
        if config.model_type == "dinov2":
            config.use_mask_token = False
        return config

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """Return the number of registers plus 1 for [CLS]."""
        return 1 + getattr(config, "num_register_tokens", 0)

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the preprocessing of `facebook/dinov2-*`: 224 pixels, although position embeddings are for 518."""
        crop = {"do_center_crop": True, "crop_size": 224}
        return {"size": {"shortest_edge": 256}, "resample": BICUBIC, **crop, **IMAGENET}

    def embed(self, x: Tensor) -> Tensor:
        """Embed images as (B, T, dim)."""
        return self.tower.embeddings(x)


ENCODER = Dinov2
MODEL_TYPES = tuple(ENCODER.MODELS)
