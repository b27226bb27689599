"""EfficientAT's MobileNets: small convolutional networks that tag audio, from the `.pt` files of their authors.

Schmid, Koutini, Widmer: Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation, ICASSP 2023.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.audio import MAX_SECONDS, Wave, check_seconds, padded
from perceptune.data.media.mel_spectrogram import LogMel
from perceptune.encoders.base import AudioEncoder, TokenSelection, pooled_levels
from perceptune.errors import UserError

Weights = Mapping[str, Tensor]

MEL = LogMel(
    rate=32_000, window=800, hop=320, fft=1024, mels=128, low=0, high=15_000, floor=1e-5, centred=True,
)  # fmt: skip
SECONDS = 10.0  # duration of AudioSet's videos, on which the networks were trained


# For each block of MobileNetV3-Large: its stride, and whether it uses hard swish instead of ReLU (Howard et al. 2019,
# table 1). Kernel sizes and channels follow from the weights.
_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)
_BLOCKS = tuple((stride, number >= 6) for number, stride in enumerate(_STRIDES))


class EfficientAT(AudioEncoder):
    """A MobileNetV3 without its classifier. Its levels: the first convolution, the 15 blocks, the last convolution.

    It has no [CLS]: a level is the mean over time and frequency; that of the last one is the classifier's input. Levels
    differ in width; `dim` is that of the last one, and narrower ones are padded with zeros. Audio is padded with
    silence to `seconds` (10 as published); for much shorter audio set `seconds` to its length.
    """

    blank = 4.5 / 5  # 0 before the scaling

    def __init__(self, features: nn.Sequential, options: EncoderConfig) -> None:
        super().__init__()
        self.features: nn.Sequential = features
        self.n_layers, self.n_tokens = len(features), 1
        last: Any = features[-1]
        self.dim = int(last[0].out_channels)
        self.hears(options, MEL.rate, check_seconds(options.seconds, SECONDS, MAX_SECONDS, "the model"))
        self.requires_grad_(False).eval()

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder; see `load_encoder`."""
        weights = _weights(source, meta)
        weights = {key: value for key, value in weights.items() if not key.startswith("classifier.")}
        with torch.device("meta"):
            features = _features(weights, source)
        holder = nn.Module()
        holder.features = features
        try:
            holder.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).splitlines()[1].split())
            raise UserError(f"{source}: not a MobileNet of EfficientAT ({reason})") from error
        encoder = cls(features, options)
        return encoder.to(getattr(torch, options.dtype))

    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """Compute (mels, frames), a frame every 10 ms."""
        return (MEL(padded(wave, round(self.seconds * MEL.rate))) + np.float32(4.5)) / np.float32(5)

    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """Return (B, n_levels, 1, dim) float32. Raises `UserError` for other tokens: levels differ in them."""
        self.check_levels(levels)
        hidden, means = x[:, None].to(next(self.parameters()).dtype), []
        for layer in islice(self.features, max(levels) + 1):
            hidden = layer(hidden)
            means.append(hidden.mean((2, 3)))
        return pooled_levels(means, levels, self.dim, tokens)

    def settings(self) -> dict[str, Any]:
        """Return the family; everything else follows from the weights."""
        return {"model_type": "efficientat-mn"}

    def preprocessing(self) -> dict[str, Any]:
        """Return sampling rate, duration and the settings of the spectrogram."""
        return {**super().preprocessing(), "mel": asdict(MEL)}


class _Residual(nn.Module):
    """An inverted residual block."""

    def __init__(self, block: nn.Sequential, *, around: bool) -> None:
        super().__init__()
        self.block, self.around = block, around

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.around else out


class _Squeeze(nn.Module):
    """A squeeze-and-excitation: scales of the channels, computed from their means over time and frequency."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class _Excitation(nn.Module):
    """A list of one `_Squeeze`: the authors' file format allows several, but the supported networks have one."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([_Squeeze(channels, squeezed)])

    def forward(self, x: Tensor) -> Tensor:
        return self.conc_se_layers[0](x)


def _weights(source: str, meta: bool) -> Weights:
    try:
        weights = torch.load(source, map_location="meta" if meta else "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or "it ends too early").splitlines()[0][:120]
        raise UserError(f"{source}: the weights cannot be read ({reason})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{source}: holds no table of weights")
    return weights


def _features(weights: Weights, source: str) -> nn.Sequential:
    """Build the network for these weights, from which its parts and widths follow."""
    try:
        first, last = (weights[f"features.{number}.0.weight"] for number in (0, len(_BLOCKS) + 1))
        return nn.Sequential(
            _convolution(first, nn.Hardswish(), stride=2),
            *(_block(weights, f"features.{i}.block.", *given) for i, given in enumerate(_BLOCKS, 1)),
            _convolution(last, nn.Hardswish()),
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{source}: not a MobileNet of EfficientAT ({error})") from error


def _block(weights: Weights, prefix: str, stride: int, hard: bool) -> _Residual:
    """Build a block: expansion (except the first), depthwise convolution, squeeze-and-excitation or not, projection."""
    count = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix))
    parts: list[nn.Module] = []
    for number in range(count):
        if (squeeze := weights.get(f"{prefix}{number}.conc_se_layers.0.fc1.weight")) is not None:
            parts.append(_Excitation(squeeze.shape[1], squeeze.shape[0]))
            continue
        weight = weights[f"{prefix}{number}.0.weight"]
        act = None if number == count - 1 else nn.Hardswish() if hard else nn.ReLU()
        within = weight.shape[-1] > 1
        parts.append(_convolution(weight, act, stride=stride if within else 1, groups=len(weight) if within else 1))
    entering: Any = parts[0]
    leaving: Any = parts[-1]
    return _Residual(nn.Sequential(*parts), around=stride == 1 and entering[0].in_channels == leaving[0].out_channels)


def _convolution(weight: Tensor, activation: nn.Module | None, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Build a convolution of the weight's shape, a batch norm and, unless it is None, the activation."""
    channels, per_group, kernel, _ = weight.shape
    convolution = nn.Conv2d(
        per_group * groups, channels, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False
    )
    norm = nn.BatchNorm2d(channels, eps=0.001)
    return nn.Sequential(convolution, norm, *([] if activation is None else [activation]))


ENCODER = EfficientAT
MODEL_TYPES = ()  # its files contain weights only
SUFFIXES = (".pt",)
