"""Log-mel spectrograms, by transformers' NumPy functions."""

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank, spectrogram

PREEMPHASIS = 0.97


@dataclass(frozen=True)
class LogMel:
    """Kaldi's log-mel filter bank energies with natural logarithm and Hann windows.

    `centred=False`, as in Kaldi: windows lie inside the audio, the mean of each is subtracted and each is
    pre-emphasised, and energies are at least `floor`. `centred=True`, as in EfficientAT: the whole audio is
    pre-emphasised, windows are centred at multiples of `hop`, and `floor` is added to the energies.
    """

    rate: int  # Hz
    window: int  # in audio samples, as `hop`
    hop: int
    fft: int
    mels: int
    low: float  # Hz, as `high`
    high: float
    floor: float
    centred: bool

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (mels, frames) of audio (N,) of at least two values."""
        wave = wave.astype(np.float64)
        if self.centred:
            wave = wave[1:] - PREEMPHASIS * wave[:-1]
        elif len(wave) < self.window:  # very short audio is valid, too
            wave = np.pad(wave, (0, self.window - len(wave)))
        energies = spectrogram(
            wave, np.hanning(self.window), self.window, self.hop, self.fft, power=2.0, center=self.centred,
            preemphasis=None if self.centred else PREEMPHASIS, remove_dc_offset=not self.centred,
            mel_filters=_filters(self), mel_floor=0.0 if self.centred else self.floor, dtype=np.dtype(np.float64),
        )  # fmt: skip
        return np.log(energies + self.floor if self.centred else energies).astype(np.float32)


@cache
def _filters(mel: LogMel) -> NDArray[np.float64]:
    """Return (fft / 2 + 1, mels): triangles on Kaldi's mel scale; a narrow one may contain no frequency."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        return mel_filter_bank(
            mel.fft // 2 + 1, mel.mels, mel.low, mel.high, mel.rate, mel_scale="kaldi", triangularize_in_mel_space=True
        )  # fmt: skip
