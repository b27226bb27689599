"""Whisper's encoder."""

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.audio import Wave, check_seconds
from perceptune.encoders.base import AudioEncoder, BlockEncoder, read_preprocessor
from perceptune.errors import UserError, error_prefix

_EXTRACTOR = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")


class Whisper(AudioEncoder, BlockEncoder):
    """Whisper's encoder. It has no [CLS]: `cls` is the mean over the positions with audio, after the final norm.

    Audio is padded with silence, or cut, to the model's 30 seconds. Whole Whisper checkpoints load too; the decoder is
    not read.
    """

    MODELS: ClassVar = {"whisper": "transformers.models.whisper.modeling_whisper.WhisperEncoder"}
    RENAMED: ClassVar = {r"^(model\.)?encoder\.": ""}
    BLOCKS = "layers"
    NORM = "layer_norm"
    POOL = "mean"
    KEYS: ClassVar = AudioEncoder.KEYS | {"norm"}
    UNUSED = ("model.decoder.", "decoder.", "proj_out.", "projector.", "classifier.", "layer_weights")

    def __init__(self, tower: nn.Module, extractor: WhisperFeatureExtractor, options: EncoderConfig) -> None:
        super().__init__(tower)
        self.extractor = extractor
        self.n_tokens = int(self.tower.config.max_source_positions)
        most = extractor.n_samples / extractor.sampling_rate
        self.hears(options, extractor.sampling_rate, check_seconds(options.seconds, most, most, "the model"))

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder; see `load_encoder`."""
        given = read_preprocessor(source, options.revision, "feature_extractor")
        given = {"feature_size": config.num_mel_bins} | {key: given[key] for key in _EXTRACTOR if key in given}
        extractor = WhisperFeatureExtractor(**given | {"dither": 0.0})  # dither would make features random
        made = (extractor.feature_size, extractor.nb_max_frames)
        if made != (wanted := (config.num_mel_bins, 2 * config.max_source_positions)):
            shapes = [f"{mels} mel bands x {frames} frames" for mels, frames in (made, wanted)]
            raise UserError(f"{source}: its preprocessing gives {shapes[0]}, its model takes {shapes[1]}")
        tower = cls.tower_of(source, config, options, meta)
        with error_prefix(source):
            return cls(tower, extractor, options)

    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """Compute (mels, frames)."""
        taken = self.extractor(wave, sampling_rate=self.rate, return_tensors="np")
        return np.asarray(taken["input_features"][0], np.float32)

    def finish(self, spectrogram: NDArray[np.float32], wave: Wave) -> NDArray[np.float32]:
        """Append a row that is 1 for frames with audio: (mels + 1, frames)."""
        heard = np.arange(spectrogram.shape[1]) * self.extractor.hop_length < len(wave)
        return np.concatenate([spectrogram, heard[None].astype(np.float32)])

    def embed(self, x: Tensor) -> Tensor:
        """Embed spectrograms as (B, T, dim), after the two convolutions before the blocks."""
        hidden = nn.functional.gelu(self.tower.conv1(x[:, :-1]))
        hidden = nn.functional.gelu(self.tower.conv2(hidden))
        return hidden.transpose(1, 2) + self.tower.embed_positions.weight

    def pool(self, hidden: Tensor, x: Tensor) -> Tensor:
        """Return the mean (B, 1, dim) over positions that begin with audio; a position covers two frames."""
        heard = x[:, -1, ::2, None].to(hidden.dtype)
        return ((hidden * heard).sum(1) / heard.sum(1))[:, None]

    def preprocessing(self) -> dict[str, Any]:
        """Return sampling rate, duration, and the settings of Whisper's own feature extractor."""
        return {**super().preprocessing(), **{key: getattr(self.extractor, key) for key in _EXTRACTOR}}


ENCODER = Whisper
MODEL_TYPES = tuple(ENCODER.MODELS)
