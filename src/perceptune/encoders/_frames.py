"""Adapters: an image encoder for videos, and a video encoder for images."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.source import label
from perceptune.data.media.video import read_frames
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._images import ImageEncoder
from perceptune.encoders._tokens import TokenSelection
from perceptune.encoders._videos import VideoEncoder
from perceptune.errors import error_prefix
from perceptune.types import Medium

FRAMES = 8  # as in the paper's video question answering


class FrameAverage(Encoder):
    """An image encoder applied to each frame of a video: the mean of their tokens (the paper's "ViT Avg")."""

    modality = "video"
    KEYS: ClassVar = ImageEncoder.KEYS | {"frames"}

    def __init__(self, encoder: ImageEncoder, frames: int) -> None:
        super().__init__()
        self.encoder, self.frames = encoder, frames
        self.copy_shape(encoder)

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """Load (frames, 3, H, W) float32; all frames of an augmented view are cropped alike."""
        name = name or label(medium, self.modality)
        frames = read_frames(medium, self.frames, name, seed)
        return torch.stack([self.encoder.pixels(frame, name, seed) for frame in frames])

    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """Encode (B, frames, 3, H, W) to (B, n_levels, T, dim) float32, frame by frame to save memory."""
        return torch.stack([self.encoder(frame, levels, tokens) for frame in x.unbind(1)]).mean(0)

    def count_tokens(self, tokens: TokenSelection) -> int:
        """Return the number of tokens of the image encoder."""
        return self.encoder.count_tokens(tokens)

    def augmentation(self) -> dict[str, Any]:
        """Return the augmentation of a frame; the frames themselves are sampled from equal segments."""
        return self.encoder.augmentation()

    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing of a frame, and the number of frames."""
        return {**self.encoder.preprocessing(), "frames": self.frames, "sampling": "uniform"}

    def settings(self) -> dict[str, Any]:
        """Return the settings of the image encoder; `preprocessing` contains the frames."""
        return self.encoder.settings()


class Still(Encoder):
    """A video encoder applied to an image as a video of one time step."""

    modality = "image"
    KEYS: ClassVar = ImageEncoder.KEYS | {"temporal"}

    def __init__(self, encoder: VideoEncoder, *, skip_time: bool) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.use_frames(encoder.tubelet(encoder.tower.config))
        if skip_time:
            encoder.skip_time()
        else:
            encoder.unmark_time()
        self.copy_shape(encoder)

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """Load an image as (3, H, W) float32."""
        return ImageEncoder.load(self.encoder, medium, name, seed)

    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """Encode (B, 3, H, W) to (B, n_levels, T, dim) float32."""
        return self.encoder(x[:, None].expand(-1, self.encoder.frames, -1, -1, -1), levels, tokens)

    def count_tokens(self, tokens: TokenSelection) -> int:
        """Return the number of tokens of the video encoder."""
        return self.encoder.count_tokens(tokens)

    def augmentation(self) -> dict[str, Any]:
        """Return the augmentation of the video encoder's frames."""
        return self.encoder.augmentation()

    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing of the video encoder."""
        return self.encoder.preprocessing()

    def settings(self) -> dict[str, Any]:
        """Return the settings of the video encoder, and how time is treated."""
        unmarked = {} if self.encoder.marks_time else {"marks_time": False}
        return {**self.encoder.settings(), "temporal": "skip" if self.encoder.skips_time else "t1", **unmarked}


def average(encoder: Encoder, options: EncoderConfig) -> Encoder:
    """Adapt an image encoder to videos."""
    assert isinstance(encoder, ImageEncoder)
    return FrameAverage(encoder, options.frames or FRAMES)


def still(encoder: Encoder, options: EncoderConfig) -> Encoder:
    """Adapt a video encoder to images."""
    assert isinstance(encoder, VideoEncoder)
    with error_prefix(f"encoders.image `{options.id}`"):
        return Still(encoder, skip_time=options.temporal == "skip")
