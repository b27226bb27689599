"""VideoMAE."""

from typing import Any, ClassVar

from torch import Tensor, nn

from perceptune.encoders.base import BILINEAR, IMAGENET, VideoEncoder


class VideoMAE(VideoEncoder):
    """VideoMAE. It has no [CLS]: `cls` is the mean over all tokens, after the final norm if the tower has one.

    Fine-tuned checkpoints (`use_mean_pooling`) have their norm in the classification head, after the mean: it fits
    the last block only and is not read.
    """

    MODELS: ClassVar = {"videomae": "VideoMAEModel"}
    BLOCKS = "encoder.layer"
    NORM = "layernorm"
    POOL = "mean"
    # The head, and the decoder and mask of pretraining.
    UNUSED = ("classifier.", "fc_norm.", "decoder.", "encoder_to_decoder.", "mask_token")

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """Return 0: there are no special tokens."""
        return 0

    @classmethod
    def tubelet(cls, config: Any) -> int:
        """Return the number of frames of a patch, usually 2."""
        return int(config.tubelet_size)

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the preprocessing of `MCG-NJU/videomae-*`: shortest edge resized to the model's size, centre crop."""
        crop = {"do_center_crop": True, "crop_size": config.image_size, "default_to_square": False}
        return {"size": {"shortest_edge": config.image_size}, "resample": BILINEAR, **crop, **IMAGENET}

    @property
    def norm(self) -> nn.Module:
        """The tower's final norm, or the identity."""
        return self.tower.layernorm or nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """Embed videos as (B, steps * patches, dim)."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embeddings(x)
        return patches + self.in_time(embeddings.position_embeddings.to(patches))

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run one block, which takes no mask."""
        return block(hidden)


ENCODER = VideoMAE
MODEL_TYPES = tuple(ENCODER.MODELS)
