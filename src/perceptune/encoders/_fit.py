"""What makes an encoder of one modality serve another: a spectrogram of audio, the frames of a video."""

from collections.abc import Callable

from perceptune.config.schema import EncoderConfig
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._frames import average, still
from perceptune.encoders._spectrogram_images import spectrogram_images
from perceptune.errors import UserError

# (what is to be read, what the encoder reads) -> what makes the one serve the other
ADAPTERS: dict[tuple[str, str], Callable[[Encoder, EncoderConfig], Encoder]] = {
    ("audio", "image"): spectrogram_images,
    ("video", "image"): average,
    ("image", "video"): still,
}
# Keys of `EncoderConfig` that every encoder heeds; the others are in `Encoder.KEYS`.
COMMON = frozenset({"id", "revision", "dtype", "views"})


def fit(encoder: Encoder, modality: str, options: EncoderConfig) -> Encoder:
    """`encoder` as one for `modality`. Raises `UserError` if it cannot be, and for keys that mean nothing to it."""
    if encoder.modality != modality:
        if (adapter := ADAPTERS.get((modality, encoder.modality))) is None:
            raise UserError(f"encoders.{modality} `{options.id}` reads {encoder.modality}s, not {modality}s")
        encoder = adapter(encoder, options)
    heeded = COMMON | encoder.KEYS
    for key, field in EncoderConfig.model_fields.items():
        if key not in heeded and getattr(options, key) != field.default:
            # Nobody mistyped it, so the nearest one would mislead.
            known = ", ".join(f"`{one}`" for one in sorted(heeded))
            raise UserError(f"encoders.{modality}.{key}: `{options.id}` has no such key there; choose from {known}")
    return encoder
