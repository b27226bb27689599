"""The base class of audio encoders: reading, cutting and, for augmented views, masking of audio."""

import random
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.audio import Wave, read_audio
from perceptune.data.media.source import label
from perceptune.encoders._encoder import Encoder
from perceptune.types import Medium

AUDIO_KEYS = frozenset({"seconds", "time_mask", "frequency_mask"})


class AudioEncoder(Encoder):
    """An encoder of (mels, frames) spectrograms. A leaf defines how they are computed."""

    modality: ClassVar[str] = "audio"
    KEYS: ClassVar = AUDIO_KEYS

    rate: int  # Hz
    seconds: float  # seconds of audio used, from the start
    masks: tuple[int, int]  # maximum numbers of frames and mel bands that an augmented view masks
    blank: float = 0.0  # value of masked entries

    @abstractmethod
    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """Compute (mels, frames) of audio of at most `seconds`; always of the same shape."""

    def hears(self, options: EncoderConfig, rate: int, seconds: float) -> None:
        """Set rate and duration of the audio, and the masks of augmented views."""
        self.rate, self.seconds = rate, seconds
        self.masks = options.time_mask, options.frequency_mask

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """Load audio as a spectrogram (mels, frames) float32, processed by `finish`."""
        wave = read_audio(medium, self.rate, self.seconds, name or label(medium, self.modality))
        spectrogram = self.spectrogram(wave)
        if seed is not None:
            spectrogram = masked(spectrogram, self.masks, seed, self.blank)
        return torch.from_numpy(self.finish(spectrogram, wave))

    def finish(self, spectrogram: NDArray[np.float32], wave: Wave) -> NDArray[np.float32]:
        """Convert a spectrogram, masked or not, to the input of `forward`."""
        return spectrogram

    def preprocessing(self) -> dict[str, Any]:
        """Return sampling rate in Hz and duration in seconds."""
        return {"rate": self.rate, "seconds": self.seconds}

    def augmentation(self) -> dict[str, Any]:
        """Return the maximum numbers of masked frames and bands."""
        return {"time_mask": self.masks[0], "frequency_mask": self.masks[1]}


def masked(spectrogram: NDArray[np.float32], masks: tuple[int, int], seed: bytes, blank: float) -> NDArray[np.float32]:
    """Apply SpecAugment's masks: set a run of frames and a run of mel bands of (mels, frames) to `blank`.

    Their lengths are uniform up to `masks`; the same seed gives the same masks.
    """
    chance, out = random.Random(seed), spectrogram.copy()
    for axis, most in zip((1, 0), masks, strict=True):
        size = out.shape[axis]
        width = min(size, chance.randint(0, most))
        start = chance.randint(0, size - width)
        hidden = [slice(None), slice(None)]
        hidden[axis] = slice(start, start + width)
        out[tuple(hidden)] = blank
    return out
