"""Reading sounds: what `media` does for pictures. Only as much as is heard is ever decoded."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceptune.errors import UserError
from perceptune.media import MediaError, content, label
from perceptune.types import Medium

Wave = NDArray[np.float32]  # one channel, -1 to 1

MAX_SECONDS = 3600.0
MAX_CHANNELS = 64
RATES = (1_000, 768_000)  # Hz; what lies outside is a damaged header
# What may be missing of the length in the header, which some programs only estimate.
_SHORT_SHARE, _SHORT_SECONDS = 0.05, 0.25
_BLOCK = 65_536  # values per channel decoded at a time
# Containers that libsndfile does not read, by the bytes at some place near their start, and what FFmpeg calls them.
_CONTAINERS = (
    (4, b"ftyp", "an MP4 or M4A file", "mov,mp4,m4a"),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska file", "matroska,webm"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a WMA file", "asf"),
    (0, b"#!AMR", "an AMR file", "amr"),
    (0, b"\xff\xf1", "an AAC file", "aac"),
    (0, b"\xff\xf9", "an AAC file", "aac"),
)


def read_sound(medium: Medium, rate: int, seconds: float, name: str | None = None) -> Wave:
    """The first `seconds` of a sound, its channels averaged, at `rate` Hz: (N,) with N <= seconds * rate, N > 0.

    libsndfile reads WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and more; M4A, WebM and some others are read where PyAV is
    installed. `name` stands for the medium in messages (default: where it lies, or `audio` for bytes). Raises
    `MediaError`, also for a sound without samples and for one that is silent as far as it is heard.
    """
    shown = name or label(medium, "audio")
    data = content(medium, shown)
    formats = _container(data, shown)
    if formats is None:
        wave, given = _by_libsndfile(data, seconds, shown)
    else:
        wave, given = _by_ffmpeg(data, formats, seconds, shown)
    if not np.isfinite(wave).all():
        raise MediaError(f"{shown}: damaged sound (it holds values that are no numbers)")
    if not wave.size:
        raise MediaError(f"{shown}: no sound at all, its length is zero")
    if not np.ptp(wave):
        raise MediaError(f"{shown}: silent (all of the {len(wave) / given:.2f} seconds that are heard)")
    return _resampled(wave, given, rate)[: math.ceil(seconds * rate)]


class SoundHeader(NamedTuple):
    """What a file says of its sound."""

    seconds: float
    rate: int  # Hz
    channels: int


def sound_header(medium: Medium, name: str | None = None) -> SoundHeader:
    """The header of a sound: nothing is decoded. Raises `MediaError` for what `read_sound` would not begin to read."""
    shown = name or label(medium, "audio")
    data = content(medium, shown)
    formats = _container(data, shown)
    if formats is not None:
        with _ffmpeg(data, formats, shown) as (_, _, header):
            return header
    with _libsndfile(data, shown) as (_, header):
        return header


def padded(wave: Wave, length: int) -> Wave:
    """(length,): what is longer is cut, silence follows what is shorter."""
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


class _Steady(BytesIO):
    """Stays where it is when a damaged file sends libsndfile to a place before its start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(offset, whence) if whence != 0 or offset >= 0 else self.tell()


def _container(data: bytes, shown: str) -> str | None:
    """What FFmpeg calls the file's container; None for a file that libsndfile may know."""
    found = next((one for one in _CONTAINERS if data[one[0] :].startswith(one[1])), None)
    if found is not None and importlib.util.find_spec("av") is None:
        advice = "run `pip install av`, or convert it to WAV, FLAC, Ogg or MP3"
        raise MediaError(f"{shown}: {found[2]}, which needs PyAV; {advice}")
    return None if found is None else found[3]


@contextmanager
def _libsndfile(data: bytes, shown: str) -> Iterator[tuple[Any, SoundHeader]]:
    import soundfile

    try:
        with soundfile.SoundFile(_Steady(data)) as sound:
            yield sound, _checked(sound.samplerate, sound.channels, sound.frames / max(1, sound.samplerate), shown)
    except soundfile.LibsndfileError as error:
        if error.code == 1:  # format not recognised
            known = "WAV, FLAC, Ogg, MP3, AIFF and others"
            raise MediaError(f"{shown}: not a sound in a format that libsndfile reads ({known})") from error
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise MediaError(f"{shown}: damaged sound ({reason})") from error


def _by_libsndfile(data: bytes, seconds: float, shown: str) -> tuple[Wave, int]:
    with _libsndfile(data, shown) as (sound, header):
        rate = header.rate
        wanted = min(sound.frames, math.ceil(seconds * rate))
        wave = _mono(_blocks(sound, wanted))
    if len(wave) < (1 - _SHORT_SHARE) * wanted - _SHORT_SECONDS * rate:
        raise MediaError(f"{shown}: damaged sound ({len(wave) / rate:.1f} of {wanted / rate:.1f} seconds are there)")
    return wave, rate


def _blocks(sound: Any, wanted: int) -> Iterator[NDArray[np.float32]]:
    """(channels, N) each. Not `sound.blocks`: where a file ends too early, that gives what lay in memory before."""
    while wanted > 0:
        block = sound.read(min(_BLOCK, wanted), dtype="float32", always_2d=True)
        if not len(block):
            return
        yield block.T
        wanted -= len(block)


@contextmanager
def _ffmpeg(data: bytes, formats: str, shown: str) -> Iterator[tuple[Any, Any, SoundHeader]]:
    import av

    try:
        # A container can name others to be opened: only those that it begins like.
        with av.open(
            BytesIO(data), mode="r", options={"format_whitelist": formats}, metadata_errors="ignore"
        ) as container:
            if not container.streams.audio:
                raise MediaError(f"{shown}: holds no sound")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise MediaError(f"{shown}: damaged sound (encoded in a way that FFmpeg does not know)")
            length = (container.duration or 0) / av.time_base
            yield container, stream, _checked(stream.rate, stream.channels, length, shown)
    except av.error.FFmpegError as error:
        raise MediaError(f"{shown}: damaged sound ({error.strerror or error})") from error


def _by_ffmpeg(data: bytes, formats: str, seconds: float, shown: str) -> tuple[Wave, int]:
    import av

    with _ffmpeg(data, formats, shown) as (container, stream, header):
        convert, count = av.AudioResampler(format="fltp"), 0
        blocks: list[Any] = []
        for frame in container.decode(stream):
            blocks += [part.to_ndarray() for part in convert.resample(frame)]
            count += frame.samples
            if count >= seconds * header.rate:
                break
        return _mono(iter(blocks))[: math.ceil(seconds * header.rate)], header.rate


def _checked(rate: int, channels: int, seconds: float, shown: str) -> SoundHeader:
    if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"{shown}: damaged sound ({channels} channels at {rate} Hz)")
    if seconds > MAX_SECONDS:
        raise MediaError(f"{shown}: {seconds:,.0f} seconds long; allowed are {MAX_SECONDS:,.0f}")
    return SoundHeader(seconds, rate, channels)


def _mono(blocks: Iterator[NDArray[np.float32]]) -> Wave:
    """The average over the channels of blocks (channels, N)."""
    with np.errstate(invalid="ignore", over="ignore"):  # the caller looks for what is no number
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
