"""VideoMAE."""

from typing import Any, ClassVar

from torch import Tensor, nn

from perceptune.encoders.base import BILINEAR, IMAGENET, VideoEncoder


class VideoMAE(VideoEncoder):
    """VideoMAE has no [CLS]: `cls` is the mean over all tokens, after the final norm where the tower has one.

    Fine-tuned checkpoints (`use_mean_pooling`) keep their norm in the classification head, behind the mean: it belongs
    to the last block alone and stays on disk.
    """

    MODELS: ClassVar = {"videomae": "VideoMAEModel"}
    BLOCKS = "encoder.layer"
    NORM = "layernorm"
    POOL = "mean"
    # The head, and the decoder and mask of pretraining.
    UNUSED = ("classifier.", "fc_norm.", "decoder.", "encoder_to_decoder.", "mask_token")

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """None."""
        return 0

    @classmethod
    def tubelet(cls, config: Any) -> int:
        """Usually 2."""
        return int(config.tubelet_size)

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """As of `MCG-NJU/videomae-*`: the shortest edge at the model's size, then the centre."""
        crop = {"do_center_crop": True, "crop_size": config.image_size, "default_to_square": False}
        return {"size": {"shortest_edge": config.image_size}, "resample": BILINEAR, **crop, **IMAGENET}

    @property
    def norm(self) -> nn.Module:
        """The tower's final norm, or nothing."""
        return self.tower.layernorm or nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """(B, steps * patches, dim)."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embeddings(x)
        return patches + self.in_time(embeddings.position_embeddings.to(patches))

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Its blocks take no mask."""
        return block(hidden)


ENCODER = VideoMAE
MODEL_TYPES = tuple(ENCODER.MODELS)
