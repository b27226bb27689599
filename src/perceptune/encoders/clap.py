"""The audio encoder of CLAP."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ClapFeatureExtractor
from transformers.audio_utils import spectrogram, window_function

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.audio import Wave, check_seconds, padded
from perceptune.encoders import base
from perceptune.errors import UserError, error_prefix

_EXTRACTOR = (
    "feature_size", "sampling_rate", "hop_length", "max_length_s", "fft_window_size", "frequency_min", "frequency_max",
    "truncation", "padding",
)  # fmt: skip


class Clap(base.AudioEncoder):
    """A hierarchical Swin transformer (HTSAT). Its levels are the stages, before downsampling.

    It has no [CLS]: a level is the mean over time and frequency, for the last stage after the final norm. Stages differ
    in width; `dim` is that of the last one, and narrower ones are padded with zeros. Audio shorter than 10 s is
    repeated according to the preprocessing config; longer audio is cut at its end, whereas CLAP uses random parts.
    Whole CLAP checkpoints load too; text tower and projections are not read.
    """

    UNUSED: ClassVar = ("text_model.", "audio_projection.", "text_projection.", "logit_scale_")

    def __init__(self, tower: Any, extractor: ClapFeatureExtractor, options: EncoderConfig) -> None:
        super().__init__()
        self.tower: Any = tower
        self.extractor = extractor
        self.n_layers, self.n_tokens = len(self.tower.config.depths), 1
        self.dim = int(self.tower.audio_encoder.num_features)
        most = float(extractor.max_length_s)
        self.hears(options, extractor.sampling_rate, check_seconds(options.seconds, most, most, "the model"))
        self.requires_grad_(False).eval()

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Return the config of the audio tower if the checkpoint has both towers."""
        return getattr(config, "audio_config", config)

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder; see `load_encoder`."""
        given = base.read_preprocessor(source, options.revision, "feature_extractor")
        given = {"feature_size": config.num_mel_bins} | {key: given[key] for key in _EXTRACTOR if key in given}
        extractor = ClapFeatureExtractor(**given)
        if extractor.feature_size != config.num_mel_bins:
            own = f"its model takes {config.num_mel_bins}"
            raise UserError(f"{source}: its preprocessing gives {extractor.feature_size} mel bands, {own}")
        if extractor.padding not in ("repeatpad", "repeat", "pad"):
            raise UserError(f"{source}: its preprocessing has an unknown `padding`: {extractor.padding}")
        tower = base.build_tower(
            source, config, "ClapAudioModel", revision=options.revision, dtype=getattr(torch, options.dtype),
            meta=meta, unused=cls.UNUSED, renamed={r"^audio_model\.": ""},
        )  # fmt: skip
        with error_prefix(source):
            return cls(tower, extractor, options)

    def spectrogram(self, wave: Wave) -> NDArray[np.float32]:
        """Compute (mels, frames) in decibels, as the feature extractor does for audio of the model's length."""
        ex = self.extractor
        times = ex.nb_max_samples // len(wave)
        if ex.padding == "repeatpad":
            wave = np.tile(wave, max(1, times))
        elif ex.padding == "repeat":
            wave = np.tile(wave, times + 1)
        # Each of the two ways of training CLAP has its own filter bank.
        filters = ex.mel_filters if ex.truncation == "fusion" else ex.mel_filters_slaney
        made = spectrogram(
            padded(wave, ex.nb_max_samples), window_function(ex.fft_window_size, "hann"),
            frame_length=ex.fft_window_size, hop_length=ex.hop_length, power=2.0, mel_filters=filters, log_mel="dB",
        )  # fmt: skip
        return np.asarray(made, np.float32)

    def forward(self, x: Tensor, levels: Sequence[int], tokens: base.TokenSelection = "cls") -> Tensor:
        """Return (B, n_levels, 1, dim) float32. Raises `UserError` for other tokens: stages differ in them."""
        self.check_levels(levels)
        # Fusion of several parts of long audio is disabled: only the first part is encoded.
        made = self.tower(
            x.to(self.tower.dtype).transpose(1, 2)[:, None], is_longer=torch.zeros(len(x), 1, device=x.device),
            output_hidden_states=True, output_hidden_states_before_downsampling=True,
        )  # fmt: skip
        means = [stage.mean((2, 3)) for stage in made.hidden_states[1:-1]] + [made.pooler_output]
        return base.pooled_levels(means, levels, self.dim, tokens)

    def preprocessing(self) -> dict[str, Any]:
        """Return sampling rate, duration, and the settings of CLAP's own feature extractor."""
        return {**super().preprocessing(), **{key: getattr(self.extractor, key) for key in _EXTRACTOR}}

    def settings(self) -> dict[str, Any]:
        """Return the config entries that differ from the class's defaults."""
        return base.settings_of(self.tower.config)


ENCODER = Clap
MODEL_TYPES = ("clap", "clap_audio_model")
