"""One implementation for the video transformers of transformers."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.source import ImageTransform, label
from perceptune.data.media.video import read_frames
from perceptune.encoders._images import ImageEncoder, ViTEncoder
from perceptune.errors import UserError, error_prefix
from perceptune.types import Medium


class VideoEncoder(ViTEncoder):
    """A transformer over the patches of all frames of a video. A leaf says where its parts lie.

    `frames` other than those it was trained with take the position embeddings of the nearest times.
    """

    modality = "video"
    KEYS: ClassVar = ImageEncoder.KEYS | {"frames"}
    SIZES: ClassVar[bool] = False  # whether images may be of another size than the published one

    def __init__(self, tower: nn.Module, transform: ImageTransform) -> None:
        super().__init__(tower, transform)
        self.skips_time, self.marks_time = False, True
        self.frames = 0
        self.use_frames(self.tower.config.num_frames)

    @classmethod
    def tubelet(cls, config: Any) -> int:
        """How many frames a patch extends over."""
        return 1

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """See `load_encoder`."""
        encoder = super().read(source, config, options, meta)
        published = (config.image_size, config.image_size)
        if not cls.SIZES and encoder.transform.size != published:
            raise UserError(f"{source}: its frames are {published[0]} x {published[1]}; `size` cannot change that")
        with error_prefix(source):
            encoder.use_frames(options.frames or encoder.frames)
        return encoder

    def use_frames(self, frames: int) -> None:
        """Makes videos `frames` long. Raises `UserError` for a number that its patches do not divide."""
        tubelet = self.tubelet(self.tower.config)
        if frames % tubelet:
            low = max(1, frames // tubelet) * tubelet
            raise UserError(
                f"`frames` {frames} is not a multiple of its patches' {tubelet}; use {low} or {low + tubelet}"
            )
        height, width = (side // self.patch(self.tower.config) for side in self.transform.size)
        self.frames, self.n_tokens = frames, self.n_special + frames // tubelet * height * width

    def skip_time(self) -> None:
        """Leaves the attention over time out. Raises `UserError` where there is none of its own."""
        raise UserError("`temporal: skip`: it has no attention over time alone; use `temporal: t1`")

    def unmark_time(self) -> None:
        """Adds nothing for the time of a lone image, where positions in time are embeddings of their own."""

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """(frames, 3, H, W) float32; every frame of an augmented view shows the same part."""
        name = name or label(medium, self.modality)
        return torch.stack([self.pixels(f, name, seed) for f in read_frames(medium, self.frames, name, seed)])

    def preprocessing(self) -> dict[str, Any]:
        """That of a frame, and how many there are."""
        return {**super().preprocessing(), "frames": self.frames, "sampling": "uniform"}

    def in_time(self, embeddings: Tensor) -> Tensor:
        """Position embeddings (1, steps * patches, dim), in that order, for videos as long as `frames`: the nearest."""
        config: Any = self.tower.config
        published, steps = (frames // self.tubelet(config) for frames in (config.num_frames, self.frames))
        if published == steps:
            return embeddings
        table = embeddings.unflatten(1, (published, -1)).flatten(2).transpose(1, 2)  # (1, patches * dim, steps)
        table = nn.functional.interpolate(table, size=steps, mode="nearest").transpose(1, 2)
        return table.unflatten(2, (-1, embeddings.shape[2])).flatten(1, 2)
