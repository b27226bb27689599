"""What makes an encoder of one modality serve another: a picture of a sound, the frames of a clip."""

from __future__ import annotations

from collections.abc import Callable

from perceptune.encoders._encoder import Encoder
from perceptune.encoders._frames import average, still
from perceptune.errors import UserError
from perceptune.sections import EncoderConfig

# (what is to be read, what the encoder reads) -> what makes the one serve the other
ADAPTERS: dict[tuple[str, str], Callable[[Encoder, EncoderConfig], Encoder]] = {
    ("video", "image"): average,
    ("image", "video"): still,
}


def fit(encoder: Encoder, modality: str, options: EncoderConfig) -> Encoder:
    """`encoder` as one for `modality`. Raises `UserError` if it cannot be."""
    if options.frames is not None and modality != "video":
        raise UserError(f"encoders.{modality}.frames: an {modality} has none; the key belongs to `encoders.video`")
    if options.temporal is not None and (modality, encoder.modality) != ("image", "video"):
        raise UserError(f"encoders.{modality}.temporal: the key is for a video encoder that reads images")
    if encoder.modality == modality:
        return encoder
    if (adapter := ADAPTERS.get((modality, encoder.modality))) is None:
        raise UserError(f"encoders.{modality} `{options.id}` reads {encoder.modality}s, not {modality}s")
    return adapter(encoder, options)
