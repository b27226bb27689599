"""Sampling of video frames by time. Files are untrusted: reject early, name the file, never hang."""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import av
from av.error import FFmpegError
from PIL import Image

from perceptune.data.media.animation import chosen, durations, frames_of
from perceptune.data.media.file_types import HEAD, is_image, kind_of, refusal
from perceptune.data.media.rgb import to_rgb
from perceptune.data.media.source import (
    MAX_HEADER_PIXELS,
    MAX_PIXELS,
    MediaError,
    content,
    label,
    open_image,
    opened_image,
)
from perceptune.types import Medium

# Containers that FFmpeg may open. Others can refer to further files and addresses (playlists, concat lists).
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "gif", "flv", "mpegts", "mpeg", "ogg", "asf")
MAX_FRAMES = 500_000  # four and a half hours at 30 frames per second
MAX_SECONDS = 60.0  # of decoding; a video is demuxed completely, but decoded only around the sampled frames
# A video that lacks more than this, compared with its header, is truncated; smaller errors of headers are tolerated.
_SHORT_SECONDS, _SHORT_SHARE = Fraction(1, 4), Fraction(1, 20)
_TURN = Image.Transpose
_TURNS = {90: _TURN.ROTATE_90, 180: _TURN.ROTATE_180, 270: _TURN.ROTATE_270}


def read_frames(
    medium: Medium, count: int, name: str | None = None, seed: bytes | None = None, *,
    max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES, max_seconds: float = MAX_SECONDS,
) -> Iterator[Image.Image]:  # fmt: skip
    """Yield `count` frames of a video in order of time: RGB, upright, transparency on white.

    Time runs from 0, where the first frame begins, to `d`, where the last one ends (by time stamps, not by the header's
    duration). Frame i of n is the one shown at (i + 0.5) * d / n: the last one that begins at or before that time. With
    a `seed` the time is sampled between i * d / n and (i + 1) * d / n instead. Frames of a short video are repeated; a
    still image is a video of one frame, an animated WebP, PNG or AVIF file one of all its frames. Frames without time
    stamps count as equally long.

    `name` identifies the medium in messages (default: its location, or `video` for bytes). Raises `MediaError`.
    """
    data, limits = _limited(medium, name, max_pixels, max_frames, max_seconds)
    if is_image(data[:HEAD]):
        yield from _images(data, count, seed, limits)
        return
    with _demuxed(data, limits) as (stream, packets, times):
        moments = _moments(times, count, seed)
        last: tuple[Any, Image.Image] | None = None
        for frame in _shown_at(stream, packets, times, moments, limits):
            if last is None or last[0] is not frame:
                last = (frame, _image(frame, limits))
            yield last[1]


class VideoInfo(NamedTuple):
    """Size and length of a video, known without decoding it."""

    width: int  # in pixels
    height: int
    frames: int
    seconds: float | None  # None if frames have no time stamps


def describe_video(medium: Medium, name: str | None = None, *, decode: bool = False) -> VideoInfo:
    """Read a video's size, and its length by time stamps. With `decode` every frame is decoded as a check.

    This may take any time, unlike the decoding of a few frames. Raises `MediaError` as `read_frames` does.
    """
    data, limits = _limited(medium, name, MAX_PIXELS, MAX_FRAMES, math.inf if decode else MAX_SECONDS)
    if is_image(data[:HEAD]):
        return _describe_image(data, decode, limits)
    with _demuxed(data, limits) as (stream, packets, times):
        if decode and not sum(1 for _ in _decoded(stream, packets, times, limits)):
            raise limits.error("damaged: no frame can be decoded")
        seconds = float((times.end - times.starts[0]) * stream.time_base) if times.stamped else None
        return VideoInfo(stream.codec_context.width, stream.codec_context.height, len(times.starts), seconds)


def _images(data: bytes, count: int, seed: bytes | None, limits: _Limits) -> Iterator[Image.Image]:
    """Yield frames of a file that Pillow reads: of an animation by time, of a still image always the same."""
    with opened_image(data, limits.name, max_pixels=limits.still_pixels) as image:
        if len(frames_of(image)) > 1:
            times = _animation_times(image, limits)
            numbers = [bisect_right(times.starts, moment) - 1 for moment in _moments(times, count, seed)]
            yield from chosen(image, numbers)
            return
    yield from repeat(open_image(data, limits.name, max_pixels=limits.still_pixels), count)


def _animation_times(image: Image.Image, limits: _Limits) -> _Times:
    limits.check_size(*image.size)
    limits.check_count(len(frames_of(image)))
    ends = [0]
    for duration in durations(image):
        limits.check_time()
        ends.append(ends[-1] + duration)
    return _Times(ends[:-1], ends[-1], stamped=True)


def _describe_image(data: bytes, decode: bool, limits: _Limits) -> VideoInfo:
    with opened_image(data, limits.name, max_pixels=limits.still_pixels) as image:
        width, height = image.size
        if len(frames_of(image)) > 1:
            times = _animation_times(image, limits)
            return VideoInfo(width, height, len(times.starts), times.end / 1000)
    if decode:
        open_image(data, limits.name, max_pixels=limits.still_pixels)
    return VideoInfo(width, height, 1, 0.0)


@contextmanager
def _demuxed(data: bytes, limits: _Limits) -> Iterator[tuple[Any, list[Any], _Times]]:
    """Open a video; yield its stream, encoded frames and their times. FFmpeg's errors inside become `MediaError`."""
    try:
        with av.open(
            BytesIO(data), options={"format_whitelist": ",".join(FORMATS)}, metadata_errors="replace"
        ) as container:
            stream = _stream(container, limits)
            packets, times = _packets(container, stream, limits)
            yield stream, packets, times
    except FFmpegError as error:
        what = refusal(data[:HEAD], "video", "video", ", ".join(FORMATS))
        if kind_of(data[:HEAD]) is None:
            what = f"damaged video, or {what}"
        raise limits.error(f"{what} ({error.strerror})") from error


@dataclass(frozen=True)
class _Limits:
    name: str
    pixels: int
    frames: int
    deadline: float
    ended: bool  # whether the data end with a GIF's trailer

    @property
    def still_pixels(self) -> int:
        """Most pixels of a still image, which is scaled down above the default limit."""
        return MAX_HEADER_PIXELS if self.pixels == MAX_PIXELS else self.pixels

    def check_size(self, width: int, height: int) -> None:
        if not width * height:
            raise self.error("the size of its frames is unknown: they are damaged or far too large")
        if width * height > self.pixels:
            raise self.error(f"{width} x {height} pixels; allowed are 1 to {self.pixels:,}")

    def check_count(self, count: int) -> None:
        if count > self.frames:
            raise self.error(f"{count:,} frames or more; allowed are {self.frames:,}")

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise self.error("decoding takes too long; cut the video or encode it with more key frames")

    def error(self, what: str) -> MediaError:
        return MediaError(f"{self.name}: {what}")


def _limited(medium: Medium, name: str | None, pixels: int, frames: int, seconds: float) -> tuple[bytes, _Limits]:
    """Read the bytes of a video and set the limits of its decoding."""
    shown = name or label(medium, "video")
    data = content(medium, shown)
    return data, _Limits(shown, pixels, frames, time.monotonic() + seconds, data.rstrip(b"\0").endswith(b";"))


@dataclass(frozen=True)
class _Times:
    """Start times of frames in display order, and the end of the last one, in ticks of the stream."""

    starts: Sequence[int]
    end: int
    stamped: bool  # False: frames are counted


def _stream(container: Any, limits: _Limits) -> Any:
    """Return the video stream, with limits set on its decoder."""
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        raise limits.error("no frames in it, only audio" if container.streams.audio else "no frames in it")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise limits.error("its frames are encoded in an unknown way")
    limits.check_size(context.width, context.height)
    limits.check_count(stream.frames)
    context.thread_count = 1  # several videos are decoded in parallel already
    context.options = {"max_pixels": str(limits.pixels)}  # frames may be larger than the header claims
    return stream


def _packets(container: Any, stream: Any, limits: _Limits) -> tuple[list[Any], _Times]:
    """Demux the encoded frames in decoding order, and their times. Raises `MediaError` for a truncated video."""
    packets: list[Any] = []
    end = Fraction(0)
    for packet in container.demux():
        limits.check_time()
        if packet.size == 0 and packet.pts is None:  # PyAV's marker of the end
            continue
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream_index == stream.index:
            if packet.is_corrupt:
                raise limits.error(f"damaged or cut off at frame {len(packets)}")
            packets.append(packet)
            limits.check_count(len(packets))
    if container.format.name == "gif" and not limits.ended:
        raise limits.error("cut off: its end is missing")
    kept = [packet for packet in packets if not packet.is_discard]
    if not kept:
        raise limits.error("no frames in it")
    if container.duration:
        told = Fraction(container.duration, av.time_base)  # some count it from 0, some from the first frame
        if told - end > max(_SHORT_SECONDS, told * _SHORT_SHARE):
            raise limits.error(f"cut off after {float(end):.2f} of {float(told):.2f} seconds")
    return packets, _times(kept)


def _times(packets: Sequence[Any]) -> _Times:
    if any(packet.pts is None for packet in packets):
        return _Times(range(len(packets)), len(packets), stamped=False)
    last = max(packets, key=lambda packet: packet.pts)
    starts = sorted({packet.pts for packet in packets})
    before = starts[-1] - starts[-2] if len(starts) > 1 else 1
    return _Times(starts, last.pts + (last.duration or before), stamped=True)


def _moments(times: _Times, count: int, seed: bytes | None) -> list[Fraction | int]:
    """Return the time in ticks at which each wanted frame is shown; its number if frames have no time stamps."""
    chance = random.Random(seed)
    within = [Fraction(1, 2) if seed is None else Fraction(chance.random()) for _ in range(count)]
    first = times.starts[0]
    moments = [first + (i + part) * Fraction(times.end - first, count) for i, part in enumerate(within)]
    return list(moments) if times.stamped else [int(moment) for moment in moments]


def _shown_at(
    stream: Any, packets: Sequence[Any], times: _Times, moments: Sequence[Fraction | int], limits: _Limits
) -> Iterator[Any]:
    """Yield the frame shown at each moment. The frames after each key frame are decoded only as far as needed."""
    keys = sorted((p.pts, index) for index, p in enumerate(packets) if p.is_keyframe) if times.stamped else []

    def begin(moment: Fraction | int) -> int:
        return keys[at - 1][1] if (at := bisect_right(keys, moment, key=itemgetter(0))) else 0

    for start, group in groupby(moments, begin):
        frames = _decoded(stream, packets[start:], times, limits)
        shown, coming = None, next(frames, None)
        for moment in group:
            # The first frame that can be decoded replaces missing ones before it.
            while coming is not None and (shown is None or coming[0] <= moment):
                shown, coming = coming, next(frames, None)
            if shown is None:
                raise limits.error("damaged: no frame can be decoded")
            yield shown[1]


def _decoded(stream: Any, packets: Sequence[Any], times: _Times, limits: _Limits) -> Iterator[tuple[int, Any]]:
    """Yield frames from a key frame on in display order, each with its start time."""
    context = stream.codec_context
    if context.is_open:
        context.flush_buffers()
    number = 0
    for packet in [*packets, None]:
        limits.check_time()
        for frame in _decode(context, packet):
            if frame.is_corrupt:
                raise limits.error("damaged frame")
            yield frame.pts if times.stamped and frame.pts is not None else number, frame
            number += 1


def _decode(context: Any, packet: Any) -> list[Any]:
    """Decode a packet; a separate function, so that a test can count calls."""
    return context.decode(packet)


def _image(frame: Any, limits: _Limits) -> Image.Image:
    """Convert a frame to an upright RGB image."""
    limits.check_size(frame.width, frame.height)  # it may differ from the header's
    if any(component.is_alpha for component in frame.format.components):
        image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)
