"""Audio for an encoder of images: it sees their log-mel spectrograms."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.audio import MAX_SECONDS, Wave, check_seconds, padded
from perceptune.data.media.mel_spectrogram import LogMel
from perceptune.encoders._audio import AUDIO_KEYS, AudioEncoder
from perceptune.encoders._encoder import Encoder, TokenSelection
from perceptune.encoders._images import ImageEncoder
from perceptune.errors import UserError

MEL = LogMel(
    rate=32_000, window=800, hop=320, fft=1024, mels=128, low=20, high=16_000, floor=1e-10, centred=True,
)  # fmt: skip
SECONDS = 10.0
RANGE = 8.0 * np.log(10.0)  # from black to white: 80 dB


class SpectrogramImages(AudioEncoder):
    """An image encoder that is shown audio: time to the right, pitch upwards, the loudest white, 80 dB below black."""

    KEYS: ClassVar = AUDIO_KEYS | ImageEncoder.KEYS - {"flip", "rand_augment"}

    def __init__(self, encoder: ImageEncoder, options: EncoderConfig) -> None:
        super().__init__()
        self.inner = encoder
        # Nothing of a spectrogram may be cropped away.
        self.transform = replace(encoder.transform, resize=encoder.transform.size, crop=None)
        self.n_layers, self.dim, self.n_tokens = encoder.n_layers, encoder.dim, encoder.n_tokens
        self.hears(options, MEL.rate, check_seconds(options.seconds, SECONDS, MAX_SECONDS, "the spectrogram"))

    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """(mels, frames), from 0 (black) to 1."""
        mel = MEL(padded(wave, round(self.seconds * MEL.rate)))
        return ((mel - mel.max()) / np.float32(RANGE) + 1).clip(0, 1)

    def finish(self, spectrogram: NDArray[np.float32], wave: Wave) -> NDArray[np.float32]:
        """(3, H, W) as the image encoder takes it."""
        grey = Image.fromarray((255 * spectrogram[::-1]).round().astype(np.uint8))
        return self.transform(grey.convert("RGB"))

    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """(B, n_levels, T, dim) float32, as of the image encoder."""
        out: Tensor = self.inner(x, levels, tokens)
        return out

    def preprocessing(self) -> dict[str, Any]:
        """How the image is made, and what is done to it."""
        return {**super().preprocessing(), "mel": asdict(MEL), "range": RANGE, "picture": self.transform.as_dict()}

    def settings(self) -> dict[str, Any]:
        """Those of the image encoder."""
        return self.inner.settings()


def spectrogram_images(encoder: Encoder, options: EncoderConfig) -> Encoder:
    """`encoder` of images as one of audio."""
    if not isinstance(encoder, ImageEncoder):
        raise UserError(f"`{options.id}` cannot be shown audio: only an `ImageEncoder` can")
    return SpectrogramImages(encoder, options)
