"""Log-mel spectrograms against slow and plain ones, and against transformers'."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor
from transformers.models.audio_spectrogram_transformer import feature_extraction_audio_spectrogram_transformer as hf

from perceptune.data.media.mel_spectrogram import LogMel
from sounds import noise, tone

AST = LogMel(16_000, 400, 160, 512, 128, 20, 8_000, float(np.finfo(np.float32).eps), centred=False)
EFFICIENTAT = LogMel(32_000, 800, 320, 1024, 128, 0, 15_000, 1e-5, centred=True)


def sounds(rate: int) -> list[Any]:
    mixed = [tone(200, 0.3, rate), noise(0.3, rate), tone(3_000, 0.3, rate) + noise(0.3, rate) + 0.2]
    return [wave[:, 0].astype(np.float32) for wave in mixed]


def triangles(mel: LogMel) -> torch.Tensor:
    """(mels, fft / 2 + 1) by the formula: up from one centre to the next and down again, on 1127 ln(1 + f / 700)."""

    def scale(f: float) -> float:
        return 1127 * math.log(1 + f / 700)

    step = (scale(mel.high) - scale(mel.low)) / (mel.mels + 1)
    bank = torch.zeros(mel.mels, mel.fft // 2 + 1, dtype=torch.float64)
    for band in range(mel.mels):
        left = scale(mel.low) + band * step
        for bin_ in range(mel.fft // 2):
            at = scale(bin_ * mel.rate / mel.fft)
            bank[band, bin_] = max(0.0, min((at - left) / step, (left + 2 * step - at) / step))
    return bank


def energies(mel: LogMel, frames: torch.Tensor) -> torch.Tensor:
    n = mel.window
    window = torch.tensor([0.5 - 0.5 * math.cos(2 * math.pi * i / (n - 1)) for i in range(n)], dtype=torch.float64)
    turns = torch.outer(torch.arange(mel.fft // 2 + 1), torch.arange(n)).double() * (-2 * math.pi / mel.fft)
    spectrum = torch.polar(torch.ones_like(turns), turns) @ (frames * window).T.to(torch.complex128)
    return triangles(mel) @ spectrum.abs() ** 2


def test_kaldis_filter_bank_energies_step_by_step() -> None:
    for wave in sounds(16_000):
        x, frames = torch.tensor(wave, dtype=torch.float64), []
        x = x - x.mean()  # as the paper's code does first
        for start in range(0, len(x) - 400 + 1, 160):
            frame = x[start : start + 400] - x[start : start + 400].mean()
            frames.append(torch.cat([frame[:1] - 0.97 * frame[:1], frame[1:] - 0.97 * frame[:-1]]))
        expected = energies(AST, torch.stack(frames)).clamp_min(torch.finfo(torch.float32).eps).log()
        np.testing.assert_allclose(AST(wave), expected, atol=1e-3)


def test_asts_own_feature_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "is_speech_available", lambda: False)  # its path without torchaudio
    with pytest.warns(UserWarning, match="mel filter"):  # the narrowest bands hold no frequency at all
        extractor = ASTFeatureExtractor(do_normalize=False, max_length=28)
    for wave in sounds(16_000):
        expected = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_values"][0].T
        np.testing.assert_allclose(AST(wave), expected, atol=1e-3)


def test_efficientats_spectrogram_by_torch() -> None:
    """As the authors define it: pre-emphasis, short-time Fourier transform, Kaldi's triangles, log(x + 1e-5)."""
    for wave in sounds(32_000):
        x = torch.tensor(wave)[None, None]
        x = torch.nn.functional.conv1d(x, torch.tensor([[[-0.97, 1.0]]]))[0]
        window = torch.hann_window(800, periodic=False)
        power = torch.stft(x, 1024, hop_length=320, win_length=800, window=window, return_complex=True)[0].abs() ** 2
        expected = (triangles(EFFICIENTAT) @ power.double() + 1e-5).log()
        np.testing.assert_allclose(EFFICIENTAT(wave), expected, atol=1e-3)


def test_a_tone_lies_in_its_band() -> None:
    for pitch in (300, 1_000, 5_000):
        for mel in (AST, EFFICIENTAT):
            band = int(mel(tone(pitch, 0.3, mel.rate)[:, 0].astype(np.float32)).mean(1).argmax())
            share = math.log((700 + pitch) / (700 + mel.low)) / math.log((700 + mel.high) / (700 + mel.low))
            assert abs(band + 1 - share * 129) < 1.5


def test_a_click_is_one_window() -> None:
    click = np.array([0.0, 1.0, -1.0], np.float32)
    assert AST(click).shape == (128, 1)
    assert np.isfinite(AST(click)).all()
    assert EFFICIENTAT(np.pad(click, (0, 640))).shape == (128, 3)
