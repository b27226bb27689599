"""Sounds come out as one channel at the wanted rate; everything else is refused with the name of the file."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest

import support
from perceptune.data.media import audio
from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import MediaError
from perceptune.types import Member
from sounds import encoded, noise, tone

EXACT = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAVEX", "PCM_24"),
    ("FLAC", "PCM_24"),
    ("AIFF", None),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]


@pytest.mark.parametrize(("kind", "subtype"), EXACT)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_format_is_read_from_bytes_files_and_archives(
    tmp_path: Path, kind: str, subtype: str | None, channels: int
) -> None:
    data = encoded(tone(channels=channels), 16_000, kind, subtype)
    path = tmp_path / "sound"
    path.write_bytes(data)
    archive = tmp_path / "archive"
    archive.write_bytes(b"12345" + data)
    stat = archive.stat()
    member = Member(str(archive), 5, len(data), "a.wav", f"{stat.st_size}-{stat.st_mtime_ns}")
    for medium in (data, path, member):
        wave = read_audio(medium, 16_000, 1.0)
        assert wave.dtype == np.float32
        np.testing.assert_allclose(wave, tone()[:, 0], atol=4e-5)


@pytest.mark.parametrize(("kind", "subtype"), LOSSY)
def test_lossy_formats_sound_alike(kind: str, subtype: str | None) -> None:
    wave = read_audio(encoded(tone(rate=48_000, channels=2), 48_000, kind, subtype), 48_000, 1.0)
    assert abs(len(wave) - 24_000) < 3_000
    spectrum = np.abs(np.fft.rfft(wave[:9_600]))
    assert np.argmax(spectrum) == 440 * 9_600 // 48_000


@pytest.mark.parametrize("given", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_and_loudness(given: int) -> None:
    wave = read_audio(encoded(tone(rate=given), given), 16_000, 1.0)
    assert len(wave) == 8_000
    np.testing.assert_allclose(wave[400:-400], tone()[400:-400, 0], atol=2e-3)


def test_channels_are_averaged() -> None:
    both = np.concatenate([tone(440), tone(880)], axis=1)
    np.testing.assert_allclose(read_audio(encoded(both, 16_000, "WAV", "FLOAT"), 16_000, 1.0), both.mean(1), atol=1e-6)


def test_only_what_is_heard_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(audio, "_BLOCK", 1_000)
    mono = audio._mono
    monkeypatch.setattr(audio, "_mono", lambda blocks: mono(asked.append(b.shape[1]) or b for b in blocks))
    wave = read_audio(encoded(noise(3.0)), 16_000, 0.25)
    assert (len(wave), sum(asked)) == (4_000, 4_000)
    np.testing.assert_allclose(wave, noise(3.0)[:4_000, 0], atol=4e-5)


def m4a() -> bytes:
    return b"\0\0\0\x18ftypM4A " + bytes(60)


BAD = [
    pytest.param(b"", "no bytes at all", id="empty"),
    pytest.param(b"hello, this is text, and long enough", "not an audio file but a text", id="text"),
    pytest.param(encoded(tone()[:0]), "its length is zero", id="no samples"),
    pytest.param(encoded(tone() * 0), r"silent \(all of the 0\.50 seconds", id="silence"),
    pytest.param(encoded(tone() * 0 + 0.25), "silent", id="constant"),
    pytest.param(encoded(tone() * np.nan, 16_000, "WAV", "FLOAT"), "values that are no numbers", id="nan"),
    pytest.param(encoded(tone() + np.inf, 16_000, "WAV", "FLOAT"), "values that are no numbers", id="inf"),
    pytest.param(encoded(tone(), 16_000, "FLAC")[:200], "damaged audio", id="truncated FLAC"),
    pytest.param(encoded(noise(), 16_000, "FLAC")[:9_000], "damaged audio", id="half of a FLAC"),
    pytest.param(
        encoded(noise(3), 16_000, "MP3")[:2_000], r"damaged audio \(0\.[0-9] of 1\.0 seconds", id="part of an MP3"
    ),
    pytest.param(encoded(noise(), 16_000, "OGG")[:3_000], "damaged audio", id="Ogg without sound"),
    pytest.param(encoded(tone(channels=65), 16_000), "damaged audio .65 channels", id="too many channels"),
    pytest.param(encoded(tone(), 500), "damaged audio .1 channels at 500 Hz", id="unlikely rate"),
]


@pytest.mark.parametrize(("data", "complaint"), BAD)
def test_bad_bytes_are_refused_by_name(data: bytes, complaint: str) -> None:
    with pytest.raises(MediaError, match=rf"^audio: .*{complaint}"):
        read_audio(data, 16_000, 1.0)
    with pytest.raises(MediaError, match=rf"^upload 3: .*{complaint}"):
        read_audio(data, 16_000, 1.0, "upload 3")


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "dog_bark_1.wav").touch()
    with pytest.raises(MediaError, match=r"dog_bark_2\.wav: no such file; did you mean `dog_bark_1\.wav`\?$"):
        read_audio(tmp_path / "dog_bark_2.wav", 16_000, 1.0)
    with pytest.raises(MediaError, match=r"dog_bark_1\.wav: the file is empty"):
        read_audio(tmp_path / "dog_bark_1.wav", 16_000, 1.0)
    with pytest.raises(MediaError, match="is a folder, not a file"):
        read_audio(tmp_path, 16_000, 1.0)


def test_silence_counts_as_far_as_is_heard() -> None:
    late = np.concatenate([tone() * 0, tone()])
    with pytest.raises(MediaError, match="silent"):
        read_audio(encoded(late), 16_000, 0.4)
    assert len(read_audio(encoded(late), 16_000, 0.6)) == 9_600


def test_a_sound_too_long_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours according to the header, without the data."""

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(audio, "_mono", decode)
    frames = 2 * 3_600 * 8_000
    comment = b"\4\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(6)
    info = comment + ((8_000 << 44) | (0 << 41) | (15 << 36) | frames).to_bytes(8, "big") + bytes(16)
    flac = b"fLaC" + b"\x80" + info[1:]
    with pytest.raises(MediaError, match="audio: 7,200 seconds long; allowed are 3,600"):
        read_audio(flac, 16_000, 1.0)


def test_a_container_of_ffmpeg_is_read_with_pyav() -> None:
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000, layout="stereo")
        samples = np.ascontiguousarray(tone(rate=48_000, channels=2).T, np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    wave = read_audio(buffer.getvalue(), 48_000, 0.3)
    assert len(wave) == 14_400
    assert np.argmax(np.abs(np.fft.rfft(wave[4_800:]))) == 440 * 9_600 // 48_000
    with pytest.raises(MediaError, match="damaged audio"):
        read_audio(m4a(), 16_000, 1.0)
    with pytest.raises(MediaError, match="damaged audio"):
        read_audio(buffer.getvalue()[:500], 16_000, 1.0)


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("CAF", None)])
def test_damage_never_escapes_as_another_exception(kind: str, subtype: str | None) -> None:
    refused = 0
    for broken in support.damaged(encoded(noise(0.3), 16_000, kind, subtype)):
        try:
            assert np.isfinite(read_audio(broken, 8_000, 0.2)).all()
        except MediaError:
            refused += 1
    assert refused > 20
