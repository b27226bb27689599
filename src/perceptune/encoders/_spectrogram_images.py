"""An adapter of image encoders to audio: they encode log-mel spectrograms as images."""

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
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._images import ImageEncoder
from perceptune.encoders._tokens import TokenSelection
from perceptune.errors import UserError

MEL = LogMel(
    rate=32_000, window=800, hop=320, fft=1024, mels=128, low=20, high=16_000, floor=1e-10, centred=True,
)  # fmt: skip
SECONDS = 10.0
RANGE = 8.0 * np.log(10.0)  # from black to white: 80 dB


class SpectrogramImages(AudioEncoder):
    """An image encoder of spectrograms: time to the right, frequency upwards, maximum white, 80 dB below it black."""

    KEYS: ClassVar = AUDIO_KEYS | ImageEncoder.KEYS - {"flip", "rand_augment"}

    def __init__(self, encoder: ImageEncoder, options: EncoderConfig) -> None:
        super().__init__()
        self.inner = encoder
        # Without a crop, which would lose parts of the spectrogram.
        self.transform = replace(encoder.transform, resize=encoder.transform.size, crop=None)
        self.copy_shape(encoder)
        self.hears(options, MEL.rate, check_seconds(options.seconds, SECONDS, MAX_SECONDS, "the spectrogram"))

    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """Compute (mels, frames), from 0 (black) to 1."""
        mel = MEL(padded(wave, round(self.seconds * MEL.rate)))
        return ((mel - mel.max()) / np.float32(RANGE) + 1).clip(0, 1)

    def finish(self, spectrogram: NDArray[np.float32], wave: Wave) -> NDArray[np.float32]:
        """Convert the spectrogram to the image encoder's input (3, H, W)."""
        grey = Image.fromarray((255 * spectrogram[::-1]).round().astype(np.uint8))
        return self.transform(grey.convert("RGB"))

    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """Return (B, n_levels, T, dim) float32 of the image encoder."""
        return self.inner(x, levels, tokens)

    def count_tokens(self, tokens: TokenSelection) -> int:
        """Return the number of tokens of the image encoder."""
        return self.inner.count_tokens(tokens)

    def preprocessing(self) -> dict[str, Any]:
        """Return the settings of the spectrogram and of the image's preprocessing."""
        return {**super().preprocessing(), "mel": asdict(MEL), "range": RANGE, "picture": self.transform.as_dict()}

    def settings(self) -> dict[str, Any]:
        """Return the settings of the image encoder."""
        return self.inner.settings()


def spectrogram_images(encoder: Encoder, options: EncoderConfig) -> Encoder:
    """Adapt an image encoder to audio."""
    if not isinstance(encoder, ImageEncoder):
        raise UserError(f"`{options.id}` cannot be shown audio: only an `ImageEncoder` can")
    return SpectrogramImages(encoder, options)
