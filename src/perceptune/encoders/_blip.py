"""The ViT of an InstructBLIP or BLIP-2, which encodes images for its Q-Former."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.encoders._images import BICUBIC, OPENAI, ImageEncoder, ViTEncoder, transform_of


class BlipVision(ViTEncoder):
    """The vision tower of a loaded model; position embeddings are interpolated for sizes other than its own."""

    BLOCKS: ClassVar = "encoder.layers"
    NORM: ClassVar = "post_layernorm"
    KEYS: ClassVar = ImageEncoder.KEYS  # without `norm`: its Q-Former was trained on normed tokens

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the preprocessing of `BlipImageProcessor` at the tower's own size."""
        side = config.image_size
        return {"size": {"height": side, "width": side}, "resample": BICUBIC, **OPENAI}

    @classmethod
    def of(cls, tower: nn.Module, source: str, options: EncoderConfig) -> BlipVision:
        """Wrap `tower` with the preprocessing in `source`, a folder or repository."""
        transform = transform_of(source, cls.published(tower.config), options)
        return cls(tower, transform).augmenting(options)

    def embed(self, x: Tensor) -> Tensor:
        """Embed images as (B, T, dim)."""
        return self.tower.embeddings(x, interpolate_pos_encoding=True)

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run one block, which takes no mask: (B, T, dim) -> (B, T, dim)."""
        return block(hidden)
