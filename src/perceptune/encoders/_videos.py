"""A shared implementation for transformers' video transformers."""

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.source import ImageTransform, label
from perceptune.data.media.video import read_frames
from perceptune.encoders._images import ViTEncoder
from perceptune.errors import UserError, error_prefix
from perceptune.types import Medium


class VideoEncoder(ViTEncoder):
    """A transformer over the patches of all frames of a video. A leaf defines the names of its parts.

    For another number of `frames` than in training, position embeddings of the nearest times are used.
    """

    modality = "video"
    KEYS: ClassVar = ViTEncoder.KEYS | {"frames"}
    SIZES: ClassVar[bool] = False  # whether images may be of another size than the published one

    def __init__(self, tower: nn.Module, transform: ImageTransform) -> None:
        super().__init__(tower, transform)
        self.skips_time, self.marks_time = False, True
        self.frames = 0
        self.use_frames(self.tower.config.num_frames)

    @classmethod
    def tubelet(cls, config: Any) -> int:
        """Return the number of frames that a patch covers."""
        return 1

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder; see `load_encoder`."""
        encoder = super().read(source, config, options, meta)
        published = (config.image_size, config.image_size)
        if not cls.SIZES and encoder.transform.size != published:
            raise UserError(f"{source}: its frames are {published[0]} x {published[1]}; `size` cannot change that")
        with error_prefix(source):
            encoder.use_frames(options.frames or encoder.frames)
        return encoder

    def use_frames(self, frames: int) -> None:
        """Set the number of frames. Raises `UserError` if it is not a multiple of a patch's frames."""
        tubelet = self.tubelet(self.tower.config)
        if frames % tubelet:
            low = max(1, frames // tubelet) * tubelet
            raise UserError(
                f"`frames` {frames} is not a multiple of its patches' {tubelet}; use {low} or {low + tubelet}"
            )
        height, width = (side // self.patch(self.tower.config) for side in self.transform.size)
        self.frames, self.n_tokens = frames, self.n_special + frames // tubelet * height * width

    def mean_over_time(self, patches: Tensor) -> Tensor:
        """Average over time steps, (B, steps * P, dim) -> (B, P, dim); the patches of one step are adjacent."""
        return patches.unflatten(1, (-1, math.prod(self.grid or ()))).mean(1)

    def skip_time(self) -> None:
        """Skip the attention over time. Raises `UserError` if the model has no separate one."""
        raise UserError("`temporal: skip`: it has no attention over time alone; use `temporal: t1`")

    def unmark_time(self) -> None:
        """Add no time embedding to a single image, for models with separate embeddings of time. Here: do nothing."""

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """Load (frames, 3, H, W) float32; all frames of an augmented view are cropped alike."""
        name = name or label(medium, self.modality)
        return torch.stack([self.pixels(f, name, seed) for f in read_frames(medium, self.frames, name, seed)])

    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing of a frame, and the number of frames."""
        return {**super().preprocessing(), "frames": self.frames, "sampling": "uniform"}

    def in_time(self, embeddings: Tensor) -> Tensor:
        """Resample position embeddings (1, steps * patches, dim), in that order, to `frames` by the nearest time."""
        config: Any = self.tower.config
        published, steps = (frames // self.tubelet(config) for frames in (config.num_frames, self.frames))
        if published == steps:
            return embeddings
        table = embeddings.unflatten(1, (published, -1)).flatten(2).transpose(1, 2)  # (1, patches * dim, steps)
        table = nn.functional.interpolate(table, size=steps, mode="nearest").transpose(1, 2)
        return table.unflatten(2, (-1, embeddings.shape[2])).flatten(1, 2)
