"""ViViT, the variant with joint attention over space and time."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from perceptune.encoders.base import BILINEAR, INCEPTION, BlockParts, VideoEncoder
from perceptune.errors import UserError


class Vivit(VideoEncoder):
    """ViViT; [CLS] is token 0."""

    MODELS: ClassVar = {"vivit": "VivitModel"}
    BUILD: ClassVar = {"add_pooling_layer": False}
    BLOCKS = "layers"
    PARTS = BlockParts(("layernorm_before", "layernorm_after"), "attention", "o_proj")
    NORM = "layernorm"
    UNUSED = ("pooler.", "classifier.")

    @classmethod
    def patch(cls, config: Any) -> int:
        """Return the side of a patch. Raises `UserError` for patches that are not square."""
        _, height, width = config.tubelet_size
        if height != width:
            raise UserError(f"ViViT with patches of {height} x {width} pixels; known are square ones")
        return int(height)

    @classmethod
    def tubelet(cls, config: Any) -> int:
        """Return the number of frames of a patch, usually 2."""
        return int(config.tubelet_size[0])

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the preprocessing of `google/vivit-b-16x2-kinetics400`: pixels from -1 to 1, then normalised."""
        crop = {"do_center_crop": True, "crop_size": config.image_size, "default_to_square": False}
        scale = {"rescale_factor": 1 / 127.5, "offset": True}
        edge = {"shortest_edge": config.image_size * 256 // 224}
        return {"size": edge, "resample": BILINEAR, **crop, **scale, **INCEPTION}

    def embed(self, x: Tensor) -> Tensor:
        """Embed videos as (B, 1 + steps * patches, dim)."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embeddings(x)
        positions = embeddings.position_embeddings
        patches = patches + self.in_time(positions[:, 1:])
        first = (embeddings.cls_token + positions[:, :1]).expand(len(x), -1, -1)
        return torch.cat([first, patches], dim=1)


ENCODER = Vivit
MODEL_TYPES = tuple(ENCODER.MODELS)
