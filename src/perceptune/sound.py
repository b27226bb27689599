"""Reading sounds: what `media` does for pictures. Only as much as is heard is ever decoded."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from perceptune.errors import UserError
from perceptune.media import MediaError, label, opened
from perceptune.types import Medium

Wave = NDArray[np.float32]  # one channel, -1 to 1

MAX_SECONDS = 3600.0
MAX_CHANNELS = 64
RATES = (1_000, 768_000)  # Hz; what lies outside is a damaged header
_BLOCK = 65_536  # values per channel decoded at a time
# Containers that libsndfile does not read, by the bytes at some place near their start.
_CONTAINERS = (
    (4, b"ftyp", "an MP4 or M4A file"),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska file"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a WMA file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"\xff\xf1", "an AAC file"),
    (0, b"\xff\xf9", "an AAC file"),
)


def read_sound(medium: Medium, rate: int, seconds: float, name: str | None = None) -> Wave:
    """The first `seconds` of a sound, its channels averaged, at `rate` Hz: (N,) with N <= seconds * rate, N > 0.

    libsndfile reads WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and more; the extra `video` adds M4A and whatever else
    FFmpeg reads. `name` stands for the medium in messages (default: where it lies, or `audio` for bytes). Raises
    `MediaError`, for a sound without samples and one that is silent as far as it is heard, too.
    """
    shown = name or label(medium, "audio")
    with opened(medium, shown) as file:
        container = _container(file)
        if container is None:
            wave, given = _by_libsndfile(file, seconds, shown)
        elif importlib.util.find_spec("av") is None:
            advice = 'run `pip install "perceptune[video]"`, or convert it to WAV, FLAC, Ogg or MP3'
            raise MediaError(f"{shown}: {container}, which needs PyAV; {advice}")
        else:
            wave, given = _by_ffmpeg(file, seconds, shown)
    if not np.isfinite(wave).all():
        raise MediaError(f"{shown}: damaged sound (it holds values that are no numbers)")
    if not wave.size:
        raise MediaError(f"{shown}: no sound at all, its length is zero")
    if not np.ptp(wave):
        raise MediaError(f"{shown}: silent (all of the {len(wave) / given:.2f} seconds that are heard)")
    return _resampled(wave, given, rate)[: math.ceil(seconds * rate)]


def padded(wave: Wave, length: int) -> Wave:
    """(length,): what is longer is cut, silence follows what is shorter."""
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _container(file: BinaryIO) -> str | None:
    start = file.read(16)
    file.seek(0)
    return next((what for place, mark, what in _CONTAINERS if start[place:].startswith(mark)), None)


def _by_libsndfile(file: BinaryIO, seconds: float, shown: str) -> tuple[Wave, int]:
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            _check_header(sound.samplerate, sound.channels, sound.frames / max(1, sound.samplerate), shown)
            wanted = min(sound.frames, math.ceil(seconds * sound.samplerate))
            blocks = sound.blocks(_BLOCK, frames=wanted, dtype="float32", always_2d=True)
            return _mono(block.T for block in blocks), sound.samplerate
    except soundfile.LibsndfileError as error:
        if error.code == 1:  # format not recognised
            known = "WAV, FLAC, Ogg, MP3, AIFF and others"
            raise MediaError(f"{shown}: not a sound in a format that libsndfile reads ({known})") from error
        raise MediaError(f"{shown}: damaged sound ({error.error_string.rstrip('.')})") from error


def _by_ffmpeg(file: BinaryIO, seconds: float, shown: str) -> tuple[Wave, int]:
    import av

    try:
        with av.open(file, mode="r") as container:
            if not container.streams.audio:
                raise MediaError(f"{shown}: holds no sound")
            stream = container.streams.audio[0]
            length = (container.duration or 0) / av.time_base
            _check_header(stream.rate, stream.channels, length, shown)
            convert, count = av.AudioResampler(format="fltp"), 0
            blocks: list[Any] = []
            for frame in container.decode(stream):
                blocks += [part.to_ndarray() for part in convert.resample(frame)]
                count += frame.samples
                if count >= seconds * stream.rate:
                    break
            return _mono(iter(blocks))[: math.ceil(seconds * stream.rate)], stream.rate
    except av.error.FFmpegError as error:
        raise MediaError(f"{shown}: damaged sound ({error.strerror or error})") from error


def _check_header(rate: int, channels: int, seconds: float, shown: str) -> None:
    if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"{shown}: damaged sound ({channels} channels at {rate} Hz)")
    if seconds > MAX_SECONDS:
        raise MediaError(f"{shown}: {seconds:,.0f} seconds long; allowed are {MAX_SECONDS:,.0f}")


def _mono(blocks: Iterator[NDArray[np.float32]]) -> Wave:
    """The average over the channels of blocks (channels, N)."""
    return np.concatenate([np.zeros(0, np.float32), *(block.mean(0, dtype=np.float32) for block in blocks)])


def _resampled(wave: Wave, given: int, rate: int) -> Wave:
    if given == rate:
        return wave
    import soxr

    # At least one value: a sound of a few samples must not vanish.
    resampled: Wave = soxr.resample(wave, given, rate)
    return resampled if resampled.size else wave[:1]


def check_seconds(seconds: float | None, default: float, most: float, what: str) -> float:
    """How much of a sound is heard. Raises `UserError` for more than the encoder takes."""
    if seconds is not None and seconds > most:
        raise UserError(f"`seconds` is {seconds:g}, but {what} hears {most:g} seconds at most")
    return default if seconds is None else seconds
