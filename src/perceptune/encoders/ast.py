"""The Audio Spectrogram Transformer (AST)."""

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.audio import Wave, check_seconds
from perceptune.data.media.mel_spectrogram import LogMel
from perceptune.encoders.base import AudioEncoder, BlockEncoder, BlockParts, read_preprocessor
from perceptune.errors import UserError, error_prefix

# AudioSet's statistics, with which the published checkpoints were trained.
PUBLISHED = {"sampling_rate": 16_000, "mean": -4.2677393, "std": 4.5689974, "do_normalize": True}


class AudioSpectrogramTransformer(AudioEncoder, BlockEncoder):
    """AST; [CLS] is token 0, followed by a second special token for distillation.

    Audio is converted to Kaldi's filter bank energies (25 ms windows every 10 ms, no dither) and padded with zeros, or
    cut, to the model's frames. The paper subtracts the mean of the audio first; that has no effect, since the mean of
    each window is subtracted too.
    """

    MODELS: ClassVar = {"audio-spectrogram-transformer": "ASTModel"}
    BLOCKS = "layers"
    PARTS = BlockParts(("layernorm_before", "layernorm_after"), "attention", "o_proj")
    NORM = "layernorm"
    UNUSED = ("classifier.",)
    KEYS: ClassVar = AudioEncoder.KEYS | {"norm"}

    def __init__(self, tower: nn.Module, mel: LogMel, scale: tuple[float, float], options: EncoderConfig) -> None:
        super().__init__(tower)
        config: Any = tower.config
        self.mel, self.scale, self.frames = mel, scale, int(config.max_length)
        self.n_special = 2
        self.n_tokens = int(self.tower.embeddings.position_embeddings.shape[1])
        sides = (config.num_mel_bins, config.frequency_stride), (config.max_length, config.time_stride)
        self.grid = tuple((side - config.patch_size) // stride + 1 for side, stride in sides)
        most = ((self.frames - 1) * mel.hop + mel.window) / mel.rate
        self.hears(options, mel.rate, check_seconds(options.seconds, most, most, "the model"))
        self.blank = -scale[0] / scale[1]  # as in the paper's code: 0 before normalisation

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder; see `load_encoder`."""
        given = PUBLISHED | read_preprocessor(source, options.revision, "feature_extractor")
        for key, own in (("max_length", config.max_length), ("num_mel_bins", config.num_mel_bins)):
            if given.get(key, own) != own:
                raise UserError(f"{source}: its preprocessing has `{key}` {given[key]}, its model {own}")
        rate = int(given["sampling_rate"])
        window = rate * 25 // 1000
        mel = LogMel(
            rate=rate, window=window, hop=rate // 100, fft=1 << (window - 1).bit_length(), mels=config.num_mel_bins,
            low=20, high=rate // 2, floor=float(np.finfo(np.float32).eps), centred=False,
        )  # fmt: skip
        scale = (float(given["mean"]), 2 * float(given["std"])) if given["do_normalize"] else (0.0, 1.0)
        tower = cls.tower_of(source, config, options, meta)
        with error_prefix(source):
            return cls(tower, mel, scale, options)

    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """Compute (mels, max_length)."""
        mel = self.mel(wave)[:, : self.frames]
        mel = np.pad(mel, ((0, 0), (0, self.frames - mel.shape[1])))
        return ((mel - np.float32(self.scale[0])) / np.float32(self.scale[1])).astype(np.float32)

    def embed(self, x: Tensor) -> Tensor:
        """Embed spectrograms as (B, T, dim)."""
        return self.tower.embeddings(x.transpose(1, 2))

    def preprocessing(self) -> dict[str, Any]:
        """Return sampling rate, duration, mean and divisor."""
        return {**super().preprocessing(), "scale": list(self.scale)}


ENCODER = AudioSpectrogramTransformer
MODEL_TYPES = tuple(ENCODER.MODELS)
