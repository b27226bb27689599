"""The process in which clients' media are decoded: a file that crashes or blocks a decoder does not affect the server.

Reads requests from standard input and writes responses to standard output, each a line of JSON with the number of
bytes that follow it. A response is followed by the same image or audio in an uncompressed format: BMP, WAV.
`python -m perceptune.serving.media_worker` is started by `media_worker_pool.py`.
"""

import json
import sys
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

import soundfile

from perceptune.data.media.audio import read_audio, read_audio_header
from perceptune.data.media.source import image_size, open_within
from perceptune.data.media.video import describe_video, read_frames
from perceptune.errors import UserError

MEMORY = 4 * 2**30  # address space


class RefusedError(UserError):
    """A medium beyond the server's limits."""


def checked_medium(data: bytes, modality: str, limits: dict[str, Any]) -> bytes:
    """Decode a medium as a model would, header first. Raises `UserError` for an unusable one.

    Returns the same pixels or samples as an uncompressed file; nothing for a video, as each encoder takes other frames.
    """
    return {"image": _image, "audio": _audio, "video": _video}[modality](data, limits)


def _image(data: bytes, limits: dict[str, Any]) -> bytes:
    height, width = image_size(data, "the image", max_pixels=limits["pixels"])
    if min(height, width) < limits["side"]:
        raise RefusedError(f"the image: {width} x {height} pixels; the least is {limits['side']} x {limits['side']}")
    plain = BytesIO()
    open_within(data, "the image", max_pixels=limits["pixels"], within=limits["kept"]).save(plain, "BMP")
    return plain.getvalue()


def _audio(data: bytes, limits: dict[str, Any]) -> bytes:
    header = read_audio_header(data, "the audio")
    if header.seconds > limits["seconds"]:
        raise RefusedError(f"the audio: {header.seconds:.1f} seconds; allowed are {limits['seconds']:g}")
    # A header may be wrong about the length: no more than allowed is decoded in any case.
    wave, plain = read_audio(data, header.rate, limits["seconds"], "the audio"), BytesIO()
    soundfile.write(plain, wave, header.rate, format="WAV", subtype="FLOAT")
    return plain.getvalue()


def _video(data: bytes, limits: dict[str, Any]) -> bytes:
    video = describe_video(data, "the video")
    for what, given, most in (
        ("frames", video.frames, limits["encoded_frames"]), ("seconds", video.seconds or 0.0, limits["seconds"]),
        ("pixels a frame", video.width * video.height, limits["pixels"]),
    ):  # fmt: skip
        if given > most:
            raise RefusedError(f"the video: {given:,.0f} {what}; allowed are {most:,.0f}")
    frames = read_frames(
        data, limits["frames"], "the video", max_pixels=limits["pixels"], max_frames=limits["encoded_frames"],
        max_seconds=limits["decode_seconds"],
    )  # fmt: skip
    for frame in frames:
        if min(frame.size) < limits["side"]:
            raise RefusedError(f"the video: {frame.width} x {frame.height} pixels; the least side is {limits['side']}")
    return b""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Respond to requests until there are no more."""
    while line := requests.readline():
        told = json.loads(line)
        data = requests.read(told["size"])
        plain, answer = b"", {}
        try:
            plain = checked_medium(data, told["modality"], told["limits"])
        except (UserError, MemoryError) as error:
            answer = {"error": str(error) or "it needs too much memory"}
        answers.write(json.dumps({**answer, "size": len(plain)}).encode() + b"\n" + plain)
        answers.flush()


if __name__ == "__main__":
    with suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)
