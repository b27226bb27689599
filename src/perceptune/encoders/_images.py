"""The base class of image encoders, and a shared implementation for transformers' Vision Transformers."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig, RandAugmentConfig
from perceptune.data.media.source import VIEW, ImageTransform, View, image_transform, label, open_image
from perceptune.encoders._blocks import BlockEncoder
from perceptune.encoders._checkpoints import read_preprocessor
from perceptune.encoders._encoder import Encoder
from perceptune.errors import UserError, error_prefix
from perceptune.types import Medium

# Defaults for missing entries of a preprocessor config; the family's own defaults override them.
PREPROCESSOR_DEFAULTS: dict[str, Any] = {
    "default_to_square": True, "do_resize": True, "do_center_crop": False, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
INCEPTION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
BILINEAR, BICUBIC = 2, 3


class ImageEncoder(Encoder):
    """An encoder of images preprocessed by `transform`."""

    KEYS: ClassVar = frozenset({"size", "resize", "resample", "mean", "std", "flip", "rand_augment"})

    transform: ImageTransform
    flip = True  # whether augmented views may be mirrored
    rand_augment: RandAugmentConfig | None = None  # further augmentation of the views

    def augmenting(self, options: EncoderConfig) -> Self:
        """Set the options of augmented views and return itself."""
        self.flip, self.rand_augment = options.flip, options.rand_augment
        return self

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """Load an image as (3, H, W) float32."""
        name = name or label(medium)
        return self.pixels(open_image(medium, name), name, seed)

    def pixels(self, image: Image, name: str, seed: bytes | None = None) -> Tensor:
        """Preprocess an RGB image, or the view of it that `seed` selects, to (3, H, W) float32."""
        if seed is None:
            return torch.from_numpy(self.transform(image, name))
        change = None
        if self.rand_augment is not None:
            from perceptune.data.media.rand_augment import augmented

            # A seed other than that of the view makes their draws independent.
            change = partial(augmented, seed=b"RandAugment" + seed, **self.rand_augment.model_dump())
        return torch.from_numpy(self.transform(View(seed, self.flip)(image), name, change))

    def augmentation(self) -> dict[str, Any]:
        """Return scale and aspect ratio of the random crop, flip, and RandAugment if there is any."""
        more = {} if self.rand_augment is None else {"rand_augment": self.rand_augment.model_dump()}
        return {**VIEW, "flip": self.flip, **more}

    def preprocessing(self) -> dict[str, Any]:
        """Return size, crop, resampling, scale, mean and standard deviation."""
        return self.transform.as_dict()


def transform_of(source: str, settings: Mapping[str, Any], options: EncoderConfig) -> ImageTransform:
    """Return the preprocessing in `source`, with `settings` for missing entries, overridden by `options`."""
    entries = PREPROCESSOR_DEFAULTS | dict(settings) | read_preprocessor(source, options.revision)
    if entries.get("offset"):  # ViViT's processor subtracts 1 before it normalises
        entries["image_mean"] = [mean + 1 for mean in entries["image_mean"]]
    if "crop_pct" in entries:  # even if it is null
        entries |= _crop_share(entries)
    if options.resample is not None:
        entries["resample"] = {"bilinear": BILINEAR, "bicubic": BICUBIC}[options.resample]
    with error_prefix(source):
        return image_transform(entries, options.size, options.resize, options.mean, options.std)


def _crop_share(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert ConvNeXt's `crop_pct` to resize and crop; from 384 pixels on images are squashed, not cropped."""
    size = settings["size"]
    if isinstance(size, Mapping) and "shortest_edge" not in size:
        return {}
    side = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
    if side >= 384:
        return {"size": {"height": side, "width": side}, "do_center_crop": False}
    edge = int(side / (settings["crop_pct"] or 224 / 256))
    return {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": side}


class ViTEncoder(ImageEncoder, BlockEncoder):
    """A Vision Transformer of transformers. A leaf defines the names of its parts."""

    KEYS: ClassVar = ImageEncoder.KEYS | {"norm"}

    def __init__(self, tower: nn.Module, transform: ImageTransform) -> None:
        super().__init__(tower)
        self.transform = transform
        config: Any = tower.config
        self.n_special = self.special_tokens(config)  # in front of the patches, [CLS] first
        height, width = (side // self.patch(config) for side in transform.size)
        self.n_tokens, self.grid = self.n_special + height * width, (height, width)

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Return the config of the vision tower if the checkpoint has several towers."""
        return getattr(config, "vision_config", config)

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """Return the number of tokens in front of the patches."""
        return 1

    @classmethod
    def patch(cls, config: Any) -> int:
        """Return the side of a patch in pixels."""
        return int(config.patch_size)

    @classmethod
    @abstractmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """Return the family's `preprocessor_config.json`, for a checkpoint without one."""

    def embed(self, x: Tensor) -> Tensor:
        """Embed images, (B, 3, H, W) -> (B, T, dim); position embeddings are interpolated to the size of `x`."""
        return self.tower.embeddings(x, interpolate_pos_encoding=True)

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder; see `load_encoder`."""
        transform, patch = transform_of(source, cls.published(config), options), cls.patch(config)
        if (size := options.size) is not None and size % patch:
            low = max(1, size // patch) * patch
            raise UserError(
                f"{source}: `size` {size} is not a multiple of its patches' {patch} pixels; use {low} or {low + patch}"
            )
        return cls(cls.tower_of(source, config, options, meta), transform).augmenting(options)
