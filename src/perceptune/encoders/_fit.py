"""Adapters that let an encoder of one modality encode another: spectrograms of audio, frames of a video."""

from collections.abc import Callable

from perceptune.config.schema import EncoderConfig
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._frames import average, still
from perceptune.encoders._spectrogram_images import spectrogram_images
from perceptune.errors import UserError

# (wanted modality, modality of the encoder) -> adapter
ADAPTERS: dict[tuple[str, str], Callable[[Encoder, EncoderConfig], Encoder]] = {
    ("audio", "image"): spectrogram_images,
    ("video", "image"): average,
    ("image", "video"): still,
}
# Keys of `EncoderConfig` that every encoder supports; the others are in `Encoder.KEYS`.
COMMON = frozenset({"id", "revision", "dtype", "views", "max_media"})


def fit(encoder: Encoder, modality: str, options: EncoderConfig) -> Encoder:
    """Adapt `encoder` to `modality`. Raises `UserError` if that is impossible, and for keys it does not support."""
    kept = encoder.KEYS & {"norm"}  # an adapter leaves it to the encoder inside
    if encoder.modality != modality:
        if (adapter := ADAPTERS.get((modality, encoder.modality))) is None:
            raise UserError(f"encoders.{modality} `{options.id}` reads {encoder.modality}s, not {modality}s")
        encoder = adapter(encoder, options)
    heeded = COMMON | encoder.KEYS | kept
    for key, field in EncoderConfig.model_fields.items():
        if key not in heeded and getattr(options, key) != field.default:
            # The key is valid elsewhere, so it is not a typing mistake: suggesting the nearest key would mislead.
            known = ", ".join(f"`{one}`" for one in sorted(heeded))
            raise UserError(f"encoders.{modality}.{key}: `{options.id}` has no such key there; choose from {known}")
    return encoder
