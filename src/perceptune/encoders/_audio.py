"""What encoders of audio share: how an audio file is read, cut and, for augmented views, masked."""

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
    """An encoder of (mels, frames) spectrograms. A leaf says how they are made."""

    modality: ClassVar[str] = "audio"
    KEYS: ClassVar = AUDIO_KEYS

    rate: int  # Hz
    seconds: float  # seconds of audio used, from the start
    masks: tuple[int, int]  # most frames and most mel bands that an augmented view hides
    blank: float = 0.0  # what stands where a view hides something

    @abstractmethod
    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """(mels, frames) of audio of `seconds` at most; always of the same shape."""

    def hears(self, options: EncoderConfig, rate: int, seconds: float) -> None:
        """Set what part of the audio is used, and what views hide."""
        self.rate, self.seconds = rate, seconds
        self.masks = options.time_mask, options.frequency_mask

    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """(mels, frames) float32, or what `finish` makes of it."""
        wave = read_audio(medium, self.rate, self.seconds, name or label(medium, self.modality))
        spectrogram = self.spectrogram(wave)
        if seed is not None:
            spectrogram = masked(spectrogram, self.masks, seed, self.blank)
        return torch.from_numpy(self.finish(spectrogram, wave))

    def finish(self, spectrogram: NDArray[np.float32], wave: Wave) -> NDArray[np.float32]:
        """What `forward` takes, made of a spectrogram that may have been masked."""
        return spectrogram

    def preprocessing(self) -> dict[str, Any]:
        """Sampling rate in Hz and what is heard, in seconds."""
        return {"rate": self.rate, "seconds": self.seconds}

    def augmentation(self) -> dict[str, Any]:
        """Most frames and bands that are hidden."""
        return {"time_mask": self.masks[0], "frequency_mask": self.masks[1]}


def masked(spectrogram: NDArray[np.float32], masks: tuple[int, int], seed: bytes, blank: float) -> NDArray[np.float32]:
    """SpecAugment's masks: a run of frames and a run of mel bands of (mels, frames) set to `blank`.

    Up to `masks` of them, each length as likely as any other; always the same for the same seed.
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
