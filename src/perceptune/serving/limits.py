"""What a request may cost. Every ceiling is the server's: a request may ask for less, never for more."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from perceptune.data.media.suffixes import MAX_PIXELS
from perceptune.errors import UserError

MIB = 2**20


def _limit(default: float, meaning: str) -> float:
    made: float = field(default=default, metadata={"help": meaning})
    return made


def _count(default: int, meaning: str) -> int:
    made: int = field(default=default, metadata={"help": meaning})
    return made


@dataclass(frozen=True)
class Limits:
    """Ceilings, checked before anything is decoded; each is a flag of `perceptune serve`."""

    body_mb: float = _limit(32, "MiB of a request")
    buffer_mb: float = _limit(512, "MiB of all requests that are being read or wait; beyond it: 429")
    body_seconds: float = _limit(30, "time a client has to send a request")
    parts: int = _count(16, "parts of a message")
    text_chars: int = _count(32_768, "characters of a question")
    image_mb: float = _limit(24, "MiB of an image file")
    image_pixels: int = _count(MAX_PIXELS, "pixels of an image")
    image_kept_pixels: int = _count(16_800_000, "pixels to which a larger image is scaled down while it is decoded")
    image_side: int = _count(4, "least width and height of an image")
    audio_mb: float = _limit(25, "MiB of an audio file")
    audio_seconds: float = _limit(120, "length of an audio file")
    video_mb: float = _limit(64, "MiB of a video (one in the request itself is bounded by --body-mb)")
    video_seconds: float = _limit(600, "length of a video")
    video_frames: int = _count(32, "frames that a run may take of a video")
    video_encoded_frames: int = _count(100_000, "frames a video may hold")
    video_pixels: int = _count(1920 * 1088, "pixels of a video's frame")
    decode_seconds: float = _limit(20, "time to decode a medium; then its process is killed")
    image_fetch_seconds: float = _limit(5, "time to fetch a remote image")
    audio_fetch_seconds: float = _limit(10, "time to fetch a remote audio file")
    video_fetch_seconds: float = _limit(30, "time to fetch a remote video")
    tokens: int = _count(512, "new tokens of an answer; a request for more ends there, with `finish_reason: length`")
    choices: int = _count(4, "answers to one question (`n`)")
    queue: int = _count(32, "requests that are read, decoded or wait; beyond it: 429")
    batch: int = _count(16, "answers computed together")
    seconds: float = _limit(120, "time from the first byte of a request to the end of its answer")

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise UserError(f"`--{one.name.replace('_', '-')}` must be more than 0")

    def bytes_of(self, modality: str) -> int:
        """The most a file of this kind may have."""
        return int(getattr(self, f"{modality}_mb") * MIB)

    def fetch_seconds(self, modality: str) -> float:
        """How long a remote one may take."""
        return float(getattr(self, f"{modality}_fetch_seconds"))
