"""Media as thumbnails in a page: images, frames of videos, spectrograms of audio."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from perceptune.data.media.audio import read_audio
from perceptune.data.media.mel_spectrogram import LogMel
from perceptune.data.media.source import MediaError, open_image

SIDE = 224  # pixels, at most
_FRAMES = 3  # per video
_FRAME_SIDE = 112
_RATE, _HEARD = 16_000, 30.0  # Hz; seconds of an audio file that are drawn
_MEL = LogMel(_RATE, 400, 160, 512, 64, 50.0, 8_000.0, 1e-10, centred=False)
_DYNAMIC = np.log(10.0) * 7  # dynamic range below the loudest value: 70 dB
# Dark to light with increasing loudness, readable without colours.
_COLOURS = np.array([(8, 8, 36), (84, 24, 110), (190, 54, 84), (248, 142, 40), (252, 250, 190)], np.float64)


def shots(modality: str, medium: Path, sample: str) -> list[tuple[str, str]]:
    """Return data URIs with descriptions. Raises `MediaError` for an unreadable medium."""
    name = medium.name
    if modality == "audio":
        image, seconds = spectrogram(medium)
        return [(_uri(image), f"spectrogram of {name}, {seconds:.1f} seconds, 50 Hz to 8 kHz")]
    if modality == "video":
        from perceptune.data.media.video import read_frames

        frames = list(read_frames(medium, _FRAMES))
        return [(_uri(_small(frame, _FRAME_SIDE)), f"frame {i} of {_FRAMES} of {name}") for i, frame in
                enumerate(frames, 1)]  # fmt: skip
    return [(_uri(_small(open_image(medium), SIDE)), f"image of sample {sample}, {name}")]


def spectrogram(medium: Path) -> tuple[Image.Image, float]:
    """Return the log-mel energies over time, low frequencies at the bottom, and the seconds shown."""
    wave = read_audio(medium, _RATE, _HEARD)
    if len(wave) < 2:
        raise MediaError(f"{medium}: too short to be drawn")
    logs = _MEL(wave).astype(np.float64)  # (mels, frames)
    share = ((logs - logs.max()) / _DYNAMIC + 1.0).clip(0.0, 1.0)[::-1]
    stops = np.linspace(0.0, 1.0, len(_COLOURS))
    pixels = np.stack([np.interp(share, stops, channel) for channel in _COLOURS.T], axis=-1)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    return image.resize((SIDE, SIDE // 2), Image.Resampling.BILINEAR), len(wave) / _RATE


def _small(image: Image.Image, side: int) -> Image.Image:
    image.thumbnail((side, side))
    return image


def _uri(image: Image.Image) -> str:
    """Encode as PNG unless that is much larger: JPEG blurs the edges of drawings."""
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 80})):
        data = BytesIO()
        image.convert("RGB").save(data, kind, **options)
        files[kind] = data.getvalue()
    kind = "png" if len(files["png"]) <= 1.5 * len(files["jpeg"]) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"
