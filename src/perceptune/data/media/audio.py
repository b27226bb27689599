"""Reading of audio. Only the part that is used is decoded."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceptune.data.media.file_types import HEAD, refusal
from perceptune.data.media.source import MediaError, content, label
from perceptune.errors import UserError
from perceptune.types import Medium

Wave = NDArray[np.float32]  # one channel, -1 to 1

MAX_SECONDS = 3600.0
MAX_CHANNELS = 64
RATES = (1_000, 768_000)  # Hz; other rates are signs of a damaged header
# Tolerated difference from the length in the header, which some programs only estimate.
_SHORT_SHARE, _SHORT_SECONDS = 0.05, 0.25
_BLOCK = 65_536  # values per channel decoded at a time
# Containers that FFmpeg may open. Others can refer to further files and addresses (playlists, concat lists).
_CONTAINERS = (
    *("wav", "w64", "aiff", "au", "caf", "flac", "ogg", "mp3", "aac", "ac3", "eac3", "amr", "ape", "dts", "tta", "wv"),
    *("mov", "mp4", "m4a", "matroska", "webm", "avi", "asf", "flv", "mpeg", "mpegts"),
)
_READ = "WAV, FLAC, Ogg, MP3, AIFF, M4A and others"
# Containers whose headers contain the length; for others FFmpeg estimates it from the bit rate.
_EXACT = {"wav", "flac", "ogg", "avi", "tta", "wv", "caf", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_LIBSNDFILE_UNKNOWN = 2**40  # samples: libsndfile reports far more for a streamed FLAC of unknown length


def read_audio(medium: Medium, rate: int, seconds: float, name: str | None = None) -> Wave:
    """Read the first `seconds` of audio, channels averaged, at `rate` Hz: (N,) with 0 < N <= seconds * rate.

    libsndfile reads WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and more, FFmpeg the others: M4A, the audio of videos,
    files with padding in front or without a length in the header. `name` identifies the medium in messages (default:
    its location, or `audio` for bytes). Raises `MediaError`, also for a file without samples and for one that is silent
    in the part that is used.
    """
    shown = name or label(medium, "audio")
    wave, given = _decoded(content(medium, shown), seconds, shown)
    if not np.isfinite(wave).all():
        raise MediaError(f"{shown}: damaged audio (it holds values that are no numbers)")
    if not wave.size:
        raise MediaError(f"{shown}: no audio at all, its length is zero")
    if not np.ptp(wave):
        raise MediaError(f"{shown}: silent (all of the {len(wave) / given:.2f} seconds that are heard)")
    return _resampled(wave, given, rate)[: math.ceil(seconds * rate)]


class AudioHeader(NamedTuple):
    """Header of an audio file."""

    seconds: float
    rate: int  # Hz
    channels: int


def read_audio_header(medium: Medium, name: str | None = None) -> AudioHeader:
    """Read the header of an audio file. Raises `MediaError` for a file that `read_audio` rejects by its header."""
    shown = name or label(medium, "audio")
    data = content(medium, shown)
    try:
        with _libsndfile(data, shown) as (_, header):
            return header
    except _NotForLibsndfileError as error:
        with _ffmpeg(data, shown, error) as (container, stream, header):
            if header.seconds:
                return header
            length = sum(float((packet.duration or 0) * stream.time_base) for packet in container.demux(stream))
            return _checked(header.rate, header.channels, length, shown)


def padded(wave: Wave, length: int) -> Wave:
    """Cut a wave, or pad it with silence, to (length,)."""
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


class _Steady(BytesIO):
    """A buffer that ignores seeks before its start, which damaged files make libsndfile do."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(offset, whence) if whence != 0 or offset >= 0 else self.tell()


class _NotForLibsndfileError(MediaError):
    """Raised by libsndfile for an audio file that FFmpeg may be able to read."""


@contextmanager
def _libsndfile(data: bytes, shown: str) -> Iterator[tuple[Any, AudioHeader]]:
    import soundfile

    try:
        audio = soundfile.SoundFile(_Steady(data))
    except soundfile.LibsndfileError as error:
        message = f"damaged audio ({_reason(error)})"
        if error.code == 1:  # format not recognised
            message = refusal(data[:HEAD], "audio", "audio file", _READ)
        raise _NotForLibsndfileError(f"{shown}: {message}") from error
    try:
        with audio:
            # A program that writes to a pipe cannot write the length into the header afterwards.
            if not 0 < audio.frames < _LIBSNDFILE_UNKNOWN:
                raise _NotForLibsndfileError(f"{shown}: no audio at all, its length is zero")
            yield audio, _checked(audio.samplerate, audio.channels, audio.frames / max(1, audio.samplerate), shown)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{shown}: damaged audio ({_reason(error)})") from error


def _reason(error: Any) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(".")


def _decoded(data: bytes, seconds: float, shown: str) -> tuple[Wave, int]:
    """Decode the beginning of an audio file to one channel; return it and its rate."""
    try:
        with _libsndfile(data, shown) as (audio, header):
            wanted = min(audio.frames, math.ceil(seconds * header.rate))
            return _long_enough(_mono(_blocks(audio, wanted)), wanted, header.rate, shown), header.rate
    except _NotForLibsndfileError as error:
        return _by_ffmpeg(data, seconds, shown, error)


def _long_enough(wave: Wave, wanted: float, rate: int, shown: str) -> Wave:
    if len(wave) < (1 - _SHORT_SHARE) * wanted - _SHORT_SECONDS * rate:
        raise MediaError(f"{shown}: damaged audio ({len(wave) / rate:.1f} of {wanted / rate:.1f} seconds are there)")
    return wave


def _blocks(audio: Any, wanted: int) -> Iterator[NDArray[np.float32]]:
    """Yield blocks (channels, N). `audio.blocks` would return uninitialised memory if a file ends too early."""
    while wanted > 0:
        block = audio.read(min(_BLOCK, wanted), dtype="float32", always_2d=True)
        if not len(block):
            return
        yield block.T
        wanted -= len(block)


@contextmanager
def _ffmpeg(data: bytes, shown: str, refused: _NotForLibsndfileError) -> Iterator[tuple[Any, Any, AudioHeader]]:
    """Open an audio file by FFmpeg; raise `refused`, libsndfile's error, if FFmpeg cannot open it either."""
    import av

    options = {"format_whitelist": ",".join(_CONTAINERS)}
    try:
        container = av.open(BytesIO(data), mode="r", options=options, metadata_errors="ignore")
    except av.error.FFmpegError:
        raise refused from None
    try:
        with container:
            if not container.streams.audio:
                raise MediaError(f"{shown}: holds no audio")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise MediaError(f"{shown}: damaged audio (encoded in a way that FFmpeg does not know)")
            yield container, stream, _checked(stream.rate, stream.channels, _length(container, stream), shown)
    except av.error.FFmpegError as error:
        raise MediaError(f"{shown}: damaged audio ({error.strerror or error})") from error


def _length(container: Any, stream: Any) -> float:
    """Return the seconds of an audio file according to its container; 0 if unknown."""
    import av

    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _by_ffmpeg(data: bytes, seconds: float, shown: str, refused: _NotForLibsndfileError) -> tuple[Wave, int]:
    import av

    with _ffmpeg(data, shown, refused) as (container, stream, header):
        blocks: list[Any] = []
        convert, form, rate, count = None, None, 0, 0
        for frame in container.decode(stream):
            rate = rate or frame.sample_rate  # a container may report half of it
            if frame.sample_rate != rate:
                raise MediaError(f"{shown}: its rate changes from {rate} to {frame.sample_rate} Hz half way")
            if convert is None or form != (frame.format.name, frame.layout.name):
                convert, form = av.AudioResampler(format="fltp"), (frame.format.name, frame.layout.name)
            blocks += [part.to_ndarray() for part in convert.resample(frame)]
            count += frame.samples
            if count >= seconds * rate:
                break
        rate = rate or header.rate
        wave = _mono(iter(blocks))[: math.ceil(seconds * rate)]
        # The length of a video's container may be that of its frames.
        if container.format.name in _EXACT and (stream.duration or not container.streams.video):
            _long_enough(wave, min(header.seconds, seconds) * rate, rate, shown)
        return wave, rate


def _checked(rate: int, channels: int, seconds: float, shown: str) -> AudioHeader:
    if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"{shown}: damaged audio ({channels} channels at {rate} Hz)")
    if seconds > MAX_SECONDS:
        raise MediaError(f"{shown}: {seconds:,.0f} seconds long; allowed are {MAX_SECONDS:,.0f}")
    return AudioHeader(seconds, rate, channels)


def _mono(blocks: Iterator[NDArray[np.float32]]) -> Wave:
    """Average the channels of blocks (channels, N)."""
    with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for values that are not finite
        return np.concatenate([np.zeros(0, np.float32), *(block.mean(0, dtype=np.float32) for block in blocks)])


def _resampled(wave: Wave, given: int, rate: int) -> Wave:
    if given == rate:
        return wave
    import soxr

    # At least one value, so that audio of a few samples does not become empty.
    resampled: Wave = soxr.resample(wave, given, rate)
    return resampled if resampled.size else wave[:1]


def check_seconds(seconds: float | None, default: float, most: float, what: str) -> float:
    """Return the seconds of audio to use. Raises `UserError` for more than the encoder supports."""
    if seconds is not None and seconds > most:
        raise UserError(f"`seconds` is {seconds:g}, but {what} hears {most:g} seconds at most")
    return default if seconds is None else seconds
