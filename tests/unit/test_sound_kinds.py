"""Sounds as programs and the web leave them: without a length, behind padding, beside pictures."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from clips import clip, painted
from perceptune.data.media.audio import read_audio, read_audio_header
from perceptune.data.media.source import MediaError
from sounds import encoded, noise, tone

SECONDS = 1.0
ID3 = b"ID3\3\0\0\0\0\x20\0" + bytes(4096)


def pitch(data: bytes, seconds: float = 10.0) -> tuple[float, float]:
    """Length in seconds and frequency of the loudest part of the first half of a second."""
    wave = read_audio(data, 16_000, seconds)
    return len(wave) / 16_000, 2.0 * float(np.argmax(np.abs(np.fft.rfft(wave[:8_000]))))


def streamed(size: int, riff: int) -> bytes:
    """A WAV file whose writer could not go back to say how long it became."""
    data = bytearray(encoded(tone(seconds=SECONDS)))
    at = data.index(b"data") + 4
    data[4:8], data[at : at + 4] = struct.pack("<I", riff), struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize("size", [0, 2**31 - 1, 0x7FFFF000, 2**32 - 1])
@pytest.mark.parametrize("riff", [0, 2**32 - 1])
def test_a_streamed_wav_is_as_long_as_its_data(size: int, riff: int) -> None:
    data = streamed(size, riff)
    assert read_audio_header(data).seconds == pytest.approx(SECONDS)
    np.testing.assert_allclose(read_audio(data, 16_000, 10.0), tone(seconds=SECONDS)[:, 0], atol=4e-5)


def test_a_streamed_flac_is_as_long_as_its_data() -> None:
    data = bytearray(encoded(tone(seconds=SECONDS), kind="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert read_audio_header(bytes(data)).seconds == pytest.approx(SECONDS)
    np.testing.assert_allclose(read_audio(bytes(data), 16_000, 10.0), tone(seconds=SECONDS)[:, 0], atol=4e-5)


@pytest.mark.parametrize(
    "front",
    [bytes(3_000), ID3 + bytes(5_000), noise(0.1).tobytes()[:500], ID3 + ID3[:10] + bytes(9_000)],
    ids=["zeros", "tag and zeros", "noise", "two tags and zeros"],
)
def test_an_mp3_behind_padding(front: bytes) -> None:
    length, found = pitch(front + encoded(tone(seconds=SECONDS), kind="MP3"))
    assert (length, found) == (pytest.approx(SECONDS, abs=0.2), 440)


def beside_pictures(container: str, picture: str, codec: str, rate: int = 44_100) -> bytes:
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as out:
        video: Any = out.add_stream(picture, rate=25) if picture else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        track: Any = out.add_stream(codec, rate=rate, layout="stereo")
        for number in range(25 if video is not None else 0):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
        if video is not None:
            out.mux(video.encode())
        wave = np.ascontiguousarray(tone(rate=rate, seconds=SECONDS, channels=2).T, np.float32)
        sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
        sound.sample_rate, sound.pts = rate, 0
        context = track.codec_context
        parts = av.AudioResampler(context.format, "stereo", rate, context.frame_size or None)
        for part in [*parts.resample(sound), *parts.resample(None)]:
            out.mux(track.encode(part))
        out.mux(track.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "picture", "codec"),
    [
        ("avi", "mpeg4", "libmp3lame"), ("mpeg", "mpeg2video", "mp2"), ("mpegts", "mpeg2video", "mp2"),
        ("vob", "mpeg2video", "ac3"), ("flv", "flv", "aac"), ("mov", "mpeg4", "aac"), ("matroska", "mpeg4", "flac"),
        ("ac3", "", "ac3"), ("caf", "", "alac"), ("ogg", "", "flac"), ("wv", "", "wavpack"), ("tta", "", "tta"),
    ],
)  # fmt: skip
def test_the_sound_of_every_container(container: str, picture: str, codec: str) -> None:
    data = beside_pictures(container, picture, codec)
    assert pitch(data) == (pytest.approx(SECONDS, abs=0.06), 440)
    header = read_audio_header(data)
    assert (header.seconds, header.rate, header.channels) == (pytest.approx(SECONDS, abs=0.06), 44_100, 2)
    assert len(read_audio(data, 16_000, 0.25)) == 4_000


@pytest.mark.parametrize("container", ["matroska", "caf"])
def test_half_of_a_sound_is_no_sound(container: str) -> None:
    data = beside_pictures(container, "", {"matroska": "flac", "caf": "alac"}[container])
    with pytest.raises(MediaError, match="damaged audio"):
        read_audio(data[: len(data) // 2], 16_000, 10.0)


def test_a_clip_without_sound_and_a_list_of_files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError, match=r"^audio: holds no audio$"):
        read_audio(clip(range(3)), 16_000, 1.0)
    (tmp_path / "secret.wav").write_bytes(encoded(tone()))
    monkeypatch.chdir(tmp_path)
    for text in (b"ffconcat version 1.0\nfile secret.wav\n", b"#EXTM3U\n#EXTINF:9,\nsecret.wav\n"):
        with pytest.raises(MediaError, match="not an audio file but a text"):
            read_audio(text, 16_000, 1.0)


def test_a_picture_of_an_album_is_no_clip() -> None:
    cover = BytesIO()
    Image.new("RGB", (8, 8)).save(cover, "JPEG")
    picture = b"\0image/jpeg\0\3\0" + cover.getvalue()
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = len(frame) + 4_000
    tag = b"ID3\3\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + frame + bytes(4_000)
    assert pitch(tag + encoded(tone(seconds=SECONDS), kind="MP3")) == (pytest.approx(SECONDS, abs=0.2), 440)
