"""One implementation for the Vision Transformers of transformers that see pictures."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from perceptune.encoders._blocks import BlockEncoder
from perceptune.encoders._checkpoints import read_preprocessor
from perceptune.errors import UserError
from perceptune.media import VIEW, ImageTransform, View, image_transform, label, open_image
from perceptune.sections import EncoderConfig
from perceptune.types import Medium

Self = TypeVar("Self", bound="ViTEncoder")

# What a preprocessor config leaves unsaid; the family's own defaults come on top of it.
PREPROCESSOR_DEFAULTS: dict[str, Any] = {
    "default_to_square": True, "do_resize": True, "do_center_crop": False, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
INCEPTION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
BILINEAR, BICUBIC = 2, 3


class ViTEncoder(BlockEncoder):
    """A Vision Transformer of transformers. A leaf says where its parts lie."""

    KEYS: ClassVar = frozenset({"size", "resize", "mean", "std", "flip"})

    def __init__(self, tower: nn.Module, transform: ImageTransform, *, flip: bool = True) -> None:
        super().__init__(tower)
        self.transform, self.flip = transform, flip
        config: Any = tower.config
        self.n_special = self.special_tokens(config)  # in front of the patches, [CLS] first
        height, width = (side // config.patch_size for side in transform.size)
        self.n_tokens = self.n_special + height * width

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """That of the vision tower, where the checkpoint has others."""
        return getattr(config, "vision_config", config)

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """How many tokens stand in front of the patches."""
        return 1

    @classmethod
    @abstractmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """The family's `preprocessor_config.json`, for a checkpoint that comes without one."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, dim) as it enters block 0; position embeddings follow the size of `x`."""

    @classmethod
    def read(cls: type[Self], source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """See `load_encoder`."""
        settings = PREPROCESSOR_DEFAULTS | cls.published(config) | read_preprocessor(source, options.revision)
        try:
            transform = image_transform(settings, options.size, options.resize, options.mean, options.std)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        if (size := options.size) is not None and size % config.patch_size:
            low = max(1, size // config.patch_size) * config.patch_size
            raise UserError(
                f"{source}: `size` {size} is no multiple of its patches' {config.patch_size} pixels; "
                f"use {low} or {low + config.patch_size}"
            )
        tower = cls.tower_of(source, config, options, meta)
        return cls(tower, transform, flip=options.flip)

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """(3, H, W) float32."""
        name = name or label(medium)
        image = open_image(medium, name)
        return torch.from_numpy(self.transform(image if seed is None else View(seed, self.flip)(image), name))

    def augmentation(self) -> dict[str, Any]:
        """Size and shape of what is cut out, and whether it is mirrored."""
        return {**VIEW, "flip": self.flip}

    def preprocessing(self) -> dict[str, Any]:
        """Size, crop, resampling, scale, mean and standard deviation."""
        return self.transform.as_dict()
