"""Resource limits of a request, set by the server: a request may ask for less, never for more."""

from dataclasses import dataclass, field, fields
from typing import TypeVar

from perceptune.data.media.suffixes import MAX_MIB, MAX_PIXELS
from perceptune.errors import UserError

MIB = 2**20
_MAY_BE_0 = ("reuse_mb",)
Number = TypeVar("Number", int, float)


def _limit(default: Number, meaning: str) -> Number:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Limits:
    """Limits, checked before anything is decoded; each is a flag of `perceptune serve`."""

    body_mb: float = _limit(32, "largest request in MiB")
    buffer_mb: float = _limit(512, "MiB of all requests being read or waiting; beyond it: 429")
    body_seconds: float = _limit(30, "timeout for receiving a request in seconds")
    messages: int = _limit(256, "most messages of a request")
    parts: int = _limit(16, "largest number of parts in a message")
    media: int = _limit(16, "most media of a request")
    text_chars: int = _limit(32_768, "most characters of a request's messages together")
    image_mb: float = _limit(MAX_MIB["image"], "largest image file in MiB")
    image_pixels: int = _limit(MAX_PIXELS, "most pixels of an image")
    image_kept_pixels: int = _limit(16_800_000, "pixels to which a larger image is scaled down when decoded")
    image_side: int = _limit(4, "smallest width and height of an image")
    audio_mb: float = _limit(MAX_MIB["audio"], "largest audio file in MiB")
    audio_seconds: float = _limit(120, "longest audio in seconds")
    video_mb: float = _limit(MAX_MIB["video"], "largest video file in MiB (inside a request, --body-mb applies, too)")
    video_seconds: float = _limit(600, "longest video in seconds")
    video_frames: int = _limit(32, "most frames that a run may sample from a video")
    video_encoded_frames: int = _limit(100_000, "most frames of a video file")
    video_pixels: int = _limit(1920 * 1088, "most pixels of a video frame")
    decode_seconds: float = _limit(20, "timeout for decoding a medium in seconds; its process is then killed")
    image_fetch_seconds: float = _limit(5, "timeout for fetching a remote image in seconds")
    audio_fetch_seconds: float = _limit(10, "timeout for fetching a remote audio file in seconds")
    video_fetch_seconds: float = _limit(30, "timeout for fetching a remote video in seconds")
    tokens: int = _limit(512, "most new tokens of an answer; longer ones end with `finish_reason: length`")
    choices: int = _limit(4, "most answers to one question (`n`)")
    queue: int = _limit(32, "most requests being read, decoded or waiting; beyond it: 429")
    batch: int = _limit(16, "largest batch of answers")
    reuse_mb: float = _limit(
        256, "MiB for the keys and values of answered conversations, which their next turns reuse; 0 = none"
    )
    seconds: float = _limit(120, "request timeout in seconds")
    drain_seconds: float = _limit(30, "seconds that answers in work are given to end after SIGTERM")

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least = getattr(self, one.name), "at least" if one.name in _MAY_BE_0 else "more than"
            if not (value > 0 or (value == 0 and one.name in _MAY_BE_0)):
                raise UserError(f"`--{one.name.replace('_', '-')}` must be {least} 0")

    def bytes_of(self, modality: str) -> int:
        """Return the maximum size of a file of this modality in bytes."""
        return int(getattr(self, f"{modality}_mb") * MIB)

    def fetch_seconds(self, modality: str) -> float:
        """Return the timeout for fetching a remote file of this modality."""
        return float(getattr(self, f"{modality}_fetch_seconds"))
