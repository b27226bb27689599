"""The image tower of SigLIP."""

from typing import Any, ClassVar

from perceptune.encoders.base import BICUBIC, INCEPTION, ViTEncoder


class Siglip(ViTEncoder):
    """SigLIP's image tower. It has no [CLS]: `cls` is the mean over all tokens after the final norm.

    Its attention-pooling head cannot serve for that, because it is trained on the last block's tokens only. Whole
    SigLIP checkpoints load too; the text tower is not read.
    """

    MODELS: ClassVar = {"siglip_vision_model": "SiglipVisionModel"}
    BLOCKS = "encoder.layers"
    NORM = "post_layernorm"
    POOL = "mean"
    UNUSED = ("text_model.", "head.", "logit_scale", "logit_bias", "classifier.")

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Return the config of the image tower without the pooling head."""
        config = super().prepare(config)
        config.vision_use_head = False
        return config

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """Return 0: there are no special tokens."""
        return 0

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return SigLIP's preprocessing: squash to the model's size."""
        return {"size": config.image_size, "resample": BICUBIC, **INCEPTION}


ENCODER = Siglip
MODEL_TYPES = ("siglip", *ENCODER.MODELS)
