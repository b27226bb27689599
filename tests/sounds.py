"""Sounds for the tests, and tiny random checkpoints of every encoder that hears them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from numpy.typing import NDArray

from perceptune.config.schema import EncoderConfig
from perceptune.encoders.base import Encoder
from perceptune.models.slots.build import load_encoder_of

Samples = NDArray[np.float64]


def tone(pitch: float = 440.0, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> Samples:
    """(N, channels): a sine at half of full scale."""
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    return wave[:, None].repeat(channels, 1)


def noise(seconds: float = 0.5, rate: int = 16_000, seed: int = 0) -> Samples:
    """(N, 1)"""
    return np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), 1))


def encoded(samples: Samples, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """The bytes of a file."""
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


KINDS = ("ast", "whisper", "clap", "efficientat", "pictures")  # those of the fixture `ears`
# The name of a case, the class whose checkpoint is read, its config, its preprocessing.
_WHISPER = transformers.WhisperConfig(
    d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=20,
    max_source_positions=50, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=20,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, max_target_positions=8,
)  # fmt: skip
_WHISPER_HEARS = {"feature_size": 20, "chunk_length": 1, "sampling_rate": 16_000}
_CLAP_AUDIO: dict[str, Any] = {
    "spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "depths": [2, 1, 1], "window_size": 4,
    "num_attention_heads": [2, 2, 2], "hidden_size": 32, "projection_dim": 8,
}  # fmt: skip
_CLAP_TEXT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
    "projection_dim": 8,
}  # fmt: skip
_CLAP_HEARS: dict[str, Any] = {
    "feature_size": 16, "sampling_rate": 16_000, "hop_length": 160, "max_length_s": 1, "fft_window_size": 512,
    "frequency_max": 7_000, "truncation": "rand_trunc",
}  # fmt: skip
_AST = transformers.ASTConfig(
    hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, max_length=64, num_mel_bins=32,
    patch_size=16, frequency_stride=10, time_stride=10,
)  # fmt: skip
_AST_HEARS = {"num_mel_bins": 32, "max_length": 64, "sampling_rate": 16_000, "mean": -4.0, "std": 4.5}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "ast": ("ASTModel", _AST, _AST_HEARS),
    "ast-classifier": ("ASTForAudioClassification", _AST, _AST_HEARS),
    "whisper": ("WhisperForConditionalGeneration", _WHISPER, _WHISPER_HEARS),
    "whisper-classifier": ("WhisperForAudioClassification", _WHISPER, _WHISPER_HEARS),
    "clap": (
        "ClapModel",
        transformers.ClapConfig(audio_config=_CLAP_AUDIO, text_config=_CLAP_TEXT, projection_dim=8),
        _CLAP_HEARS,
    ),
    "clap-tower": ("ClapAudioModel", transformers.ClapAudioConfig(**_CLAP_AUDIO), _CLAP_HEARS),
    "clap-fused": (
        "ClapAudioModel",
        transformers.ClapAudioConfig(**_CLAP_AUDIO, enable_fusion=True),
        {**_CLAP_HEARS, "truncation": "fusion"},
    ),
}


def save_sound_encoder(folder: Path, name: str) -> Path:
    """A folder with the checkpoint of a case; all weights random, none at its initial zero or one."""
    saved, config, hears = CASES[name]
    torch.manual_seed(2)
    model = getattr(transformers, saved)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(hears))
    return folder


# Of each block of a MobileNetV3-Large, from its paper: kernel, width inside, width of its output, squeeze.
MOBILENET = (
    (3, 4, 4, 0), (3, 8, 6, 0), (3, 8, 6, 0), (5, 8, 6, 4), (5, 8, 6, 4), (5, 8, 6, 4), (3, 8, 8, 0), (3, 8, 8, 0),
    (3, 8, 8, 0), (3, 8, 8, 0), (3, 8, 10, 4), (3, 12, 10, 4), (5, 12, 12, 4), (5, 12, 12, 4), (5, 12, 12, 4),
)  # fmt: skip


def mobilenet_weights() -> dict[str, torch.Tensor]:
    """Random weights of a narrow network, named as EfficientAT's files name them."""
    torch.manual_seed(3)
    weights: dict[str, torch.Tensor] = {}

    def convolution(name: str, out: int, into: int, kernel: int) -> None:
        weights[f"{name}.0.weight"] = torch.randn(out, into, kernel, kernel) / (into * kernel)
        for key in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{name}.1.{key}"] = torch.rand(out) + (0.5 if key in ("weight", "running_var") else -0.5)
        weights[f"{name}.1.num_batches_tracked"] = torch.tensor(7)

    convolution("features.0", 4, 1, 3)
    width = 4
    for number, (kernel, inner, out, squeezed) in enumerate(MOBILENET, 1):
        parts = [("expand", inner, width, 1)] if inner != width else []
        parts += [("within", inner, 1, kernel), ("squeeze", inner, squeezed, 0), ("project", out, inner, 1)]
        for place, (kind, *shape) in enumerate(part for part in parts if part[0] != "squeeze" or squeezed):
            name = f"features.{number}.block.{place}"
            if kind == "squeeze":
                for layer, (a, b) in (("fc1", (squeezed, inner)), ("fc2", (inner, squeezed))):
                    weights[f"{name}.conc_se_layers.0.{layer}.weight"] = torch.randn(a, b)
                    weights[f"{name}.conc_se_layers.0.{layer}.bias"] = torch.randn(a)
            else:
                convolution(name, *shape)
        width = out
    convolution("features.16", 72, width, 1)
    weights["classifier.2.weight"], weights["classifier.2.bias"] = torch.randn(5, 72), torch.randn(5)
    return weights


def save_mobilenet(file: Path) -> Path:
    """A `.pt` file as EfficientAT's authors publish them."""
    torch.save(mobilenet_weights(), file)
    return file


def save_sounds(folder: Path, rows: int = 8, name: str = "train") -> Path:
    """A JSONL file of questions on the pitch of tones, with the sounds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(rows):
        pitch, word = ((300, "low"), (3_000, "high"))[i % 2]
        sound = folder / f"{name}{i}.wav"
        sound.write_bytes(encoded(tone(pitch + 10 * i)))
        lines.append({"audio": sound.name, "prompt": "pitch?", "targets": [word]})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def where(ears: Path, kind: str) -> Path:
    return ears / (f"{kind}.pt" if kind == "efficientat" else kind)


def build(ears: Path, kind: str, **options: Any) -> Encoder:
    """As a recipe names it under `encoders.audio`."""
    if kind in ("efficientat", "pictures"):
        options = {"seconds": 1.0, **options}
    return load_encoder_of("audio", EncoderConfig(id=str(where(ears, kind)), **options))
