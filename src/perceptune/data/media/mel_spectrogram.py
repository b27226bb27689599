"""Log-mel spectrograms with NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

PREEMPHASIS = 0.97


@dataclass(frozen=True)
class LogMel:
    """Kaldi's log-mel filter bank energies, natural logarithm, of windows of the Hann shape.

    As Kaldi (`centred=False`): windows that lie inside the audio, each freed of its mean and pre-emphasised by itself,
    energies of at least `floor`. `centred=True`, as EfficientAT: the audio is pre-emphasised as a whole, windows
    stand around the multiples of `hop`, `floor` is added to the energies.
    """

    rate: int  # Hz
    window: int  # in values of the audio, as `hop`
    hop: int
    fft: int
    mels: int
    low: float  # Hz, as `high`
    high: float
    floor: float
    centred: bool

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """(mels, frames) of audio (N,) of at least two values. Computed in float64."""
        frames = self._windows(wave.astype(np.float64)) * np.hanning(self.window)
        power = np.abs(np.fft.rfft(frames, self.fft)) ** 2
        energies = _filters(self).T @ power.T
        logs = np.log(energies + self.floor if self.centred else np.maximum(energies, self.floor))
        return logs.astype(np.float32)

    def _windows(self, wave: NDArray[np.float64]) -> NDArray[np.float64]:
        """(frames, window)"""
        if self.centred:
            wave = wave[1:] - PREEMPHASIS * wave[:-1]
            wave = np.pad(wave, self.window // 2, mode="reflect")
        elif len(wave) < self.window:  # a click is audio, too
            wave = np.pad(wave, (0, self.window - len(wave)))
        frames = np.lib.stride_tricks.sliding_window_view(wave, self.window)[:: self.hop]
        if self.centred:
            return frames
        frames = frames - frames.mean(1, keepdims=True)
        # The first value of a window has none before it, and counts for nothing: there, Hann's window is 0.
        frames[:, 1:] -= PREEMPHASIS * frames[:, :-1]
        return frames


@cache
def _filters(mel: LogMel) -> NDArray[np.float64]:
    """(fft / 2 + 1, mels): triangles on Kaldi's mel scale, 1127 ln(1 + f / 700); a narrow one may hold no frequency."""
    low, high, bins = (
        1127 * np.log1p(np.asarray(f) / 700)
        for f in (mel.low, mel.high, np.arange(mel.fft // 2 + 1) * mel.rate / mel.fft)
    )
    step = (high - low) / (mel.mels + 1)
    away = (bins[:, None] - low) / step - np.arange(1, mel.mels + 1)  # from the middle of each triangle
    return np.maximum(0, 1 - np.abs(away))
