"""Frames of a clip are those of the documented times; what cannot be shown is refused by name, and in time."""

from __future__ import annotations

import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import clips
from clips import KINDS, clip, painted, read
from perceptune.data import storage
from perceptune.data.media.source import MediaError
from perceptune.data.media.video import read_frames
from perceptune.types import Member

CONSTANT = list(range(40))
VARIABLE = [0, 1, 2, 9, 10, 30, 31, 33, 60, 90]
DELAYED = [15 + 3 * i for i in range(12)]  # its first time stamp is not 0


def shown(data: bytes | Path | Member, count: int, seed: bytes | None = None) -> list[int]:
    return [read(image) for image in read_frames(data, count, seed=seed)]


def starts_and_end(data: bytes) -> tuple[list[Fraction], Fraction]:
    """When frames are shown, from a decoding of the whole clip."""
    with av.open(BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None]
        base, first = stream.time_base, min(packets)[0]
        last, length = max(packets)
        length = length or last - sorted(packets)[-2][0]
        return sorted((pts - first) * base for pts, _ in packets), (last + length - first) * base


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
@pytest.mark.parametrize("times", [CONSTANT, VARIABLE, DELAYED], ids=["constant", "variable", "delayed"])
@pytest.mark.parametrize("count", [1, 8, 50])
def test_frames_are_those_of_the_documented_times(kind: tuple[str, str, str], times: list[int], count: int) -> None:
    data = clip(times, kind)
    starts, end = starts_and_end(data)
    middles = [(i + Fraction(1, 2)) * end / count for i in range(count)]
    assert shown(data, count) == [bisect_right(starts, middle) - 1 for middle in middles]


def test_three_clips_by_hand() -> None:
    """Eight frames of ten, of two that are shown for unequal times, and of one."""
    assert shown(clip(range(10)), 8) == [0, 1, 3, 4, 5, 6, 8, 9]
    # The second begins at 0.2 s; the last one's duration is that of a frame at the stream's rate, 1/30 s.
    assert shown(clip([0, 6]), 7) == [0, 0, 0, 0, 0, 0, 1]
    assert shown(clip([0]), 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
def test_a_seed_draws_one_time_from_each_segment(times: list[int]) -> None:
    data = clip(times)
    starts, end = starts_and_end(data)
    seen = set()
    for number in range(20):
        seed = bytes([number])
        frames = shown(data, 6, seed)
        assert frames == shown(data, 6, seed)
        for i, frame in enumerate(frames):
            low, high = (bisect_right(starts, (i + side) * end / 6) - 1 for side in (0, 1))
            assert low <= frame <= high
        seen.add(tuple(frames))
    assert len(seen) > 10


@pytest.mark.parametrize("gap", [1, 5, 1000])
@pytest.mark.parametrize(("length", "count"), [(200, 16), (41, 82)])
def test_key_frames_change_nothing(gap: int, length: int, count: int) -> None:
    data = clip(range(length), g=str(gap), sc_threshold="0", bf="2")
    assert shown(data, count) == [int((i + 0.5) * length / count) for i in range(count)]


def test_only_groups_with_a_chosen_frame_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = av.VideoCodecContext.decode
    monkeypatch.setattr(
        "perceptune.data.media.video._decode", lambda context, packet: decoded.append(packet) or real(context, packet)
    )
    data = clip(range(200), g="10", sc_threshold="0", bf="0")
    assert shown(data, 2) == [50, 150]
    assert 2 <= len(decoded) < 40


def test_a_clip_comes_as_file_bytes_or_member(tmp_path: Path) -> None:
    data = clip(range(10))
    (tmp_path / "a.mp4").write_bytes(data)
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + data)
    archive = str(tmp_path / "a.tar")
    member = Member(archive, 512, len(data), "a.mp4", storage.version(archive)[1])
    assert shown(data, 4) == shown(tmp_path / "a.mp4", 4) == shown(member, 4) == [1, 3, 6, 8]


def test_threads_give_the_same_frames() -> None:
    data = [clip(range(5 + i)) for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda one: shown(one, 6), data * 3)) == [shown(one, 6) for one in data] * 3


def test_a_still_picture_is_a_clip_of_one_frame() -> None:
    for kind in ("PNG", "JPEG", "BMP", "WEBP"):
        buffer = BytesIO()
        Image.fromarray(painted(77)).save(buffer, kind)
        assert shown(buffer.getvalue(), 3) == [77, 77, 77]


def test_what_is_transparent_is_white() -> None:
    frame = np.zeros((32, 64, 4), np.uint8)
    frame[:, 32:, 3] = 255
    [image] = read_frames(clips.encoded([frame], [0], ("mov", "qtrle", "argb")), 1)
    assert [image.getpixel((x, 9)) for x in (5, 60)] == [(255, 255, 255), (0, 0, 0)]


def test_an_animation_is_shown_on_white() -> None:
    frames = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(3)]
    frames[1].paste((200, 0, 0, 255), (0, 0, 32, 32))
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    pixels = [image.getpixel((3, 3)) for image in read_frames(buffer.getvalue(), 3)]
    assert pixels[0] == (255, 255, 255)
    assert pixels[1][0] > 190 > 60 > pixels[1][2]  # type: ignore[index]


IDENTITY = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))


@pytest.mark.parametrize(
    ("a", "b", "c", "d", "corner"),
    [(1, 0, 0, 1, (0, 0)), (0, 1, -1, 0, (1, 0)), (-1, 0, 0, -1, (1, 1)), (0, -1, 1, 0, (0, 1))],
    ids=["0", "90", "180", "270"],
)
def test_a_clip_filmed_sideways_comes_upright(a: int, b: int, c: int, d: int, corner: tuple[int, int]) -> None:
    """The matrix of an MP4's track turns clockwise: its upper left corner goes where phones expect it."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16, :32] = 255
    data = clips.encoded([frame], [0])
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    matrix = b"".join((n % 2**32).to_bytes(4, "big") for n in values)
    at = data.index(IDENTITY, data.index(b"tkhd"))
    [image] = read_frames(data[:at] + matrix + data[at + 36 :], 1)
    assert image.size == ((64, 32) if b == 0 else (32, 64))
    bright = np.asarray(image.convert("L").resize((2, 2), Image.Resampling.BOX)) > 127
    assert [(x, y) for y in range(2) for x in range(2) if bright[y, x]] == [corner]


def stuffed(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """An MP4 whose box claims a number."""
    at = data.index(box) + 4 + offset
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


def refused(data: bytes, **limits: float) -> str:
    start = time.monotonic()
    with pytest.raises(MediaError) as caught:
        list(read_frames(data, 8, "upload 3", **limits))  # type: ignore[arg-type]
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(b"", "no bytes", id="empty"),
        pytest.param(b"hello, this is text", "not a video but a text", id="text"),
        pytest.param(b"#EXTM3U\n#EXTINF:9,\nfile:///etc/hostname\n", "not a video but a text", id="playlist"),
        pytest.param(b"ffconcat version 1.0\nfile /etc/hostname\n", "not a video but a text", id="list of files"),
        pytest.param(clips.encoded([], [], sound=True), "no frames in it, only audio", id="sound only"),
        pytest.param(clip(range(30))[:900], "damaged", id="truncated MP4"),
        pytest.param(clip(range(30), movflags="faststart")[:-200], "", id="truncated MP4 with its index in front"),
        pytest.param(clip(range(0, 360, 4), KINDS[2])[:-2000], "cut off after", id="truncated Matroska"),
        pytest.param(clip(range(30), KINDS[4])[:-2000], "damaged", id="truncated AVI"),
        pytest.param(clip(range(30), KINDS[5])[:-500], "cut off: its end is missing", id="truncated GIF"),
        pytest.param(clip(range(30), ("flv", "flv1", "yuv420p"))[:-500], "cut off at frame", id="truncated FLV"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(data: bytes, complaint: str) -> None:
    said = refused(data)
    assert said.startswith("upload 3: ")
    assert complaint in said


def test_a_list_of_files_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.mp4").write_bytes(clip(range(3)))
    monkeypatch.chdir(tmp_path)
    assert "not a video but a text" in refused(b"ffconcat version 1.0\nfile secret.mp4\n")


def test_a_clip_that_claims_a_billion_frames_is_refused() -> None:
    said = refused(stuffed(clip(range(30)), b"stts", 8, 10**9))
    assert said.endswith("1,000,000,000 frames or more; allowed are 500,000")
    assert refused(clip(range(31)), max_frames=30).endswith("31 frames or more; allowed are 30")


def test_huge_pictures_are_refused() -> None:
    assert "64 x 32 pixels; allowed are 1 to 2,047" in refused(clip(range(3)), max_pixels=64 * 32 - 1)
    gif = clip(range(3), KINDS[5])
    for side, complaint in ((9_000, "9000 x 9000 pixels; allowed are 1 to 64,000,000"), (60_000, "far too large")):
        assert complaint in refused(gif[:6] + side.to_bytes(2, "little") * 2 + gif[10:])


def test_decoding_ends_in_time() -> None:
    assert "takes too long" in refused(clip(range(30)), max_seconds=0.0)


def test_folders_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a folder"):
        shown(tmp_path, 1)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(MediaError, match=r"b\.mp4: no such file; did you mean `a\.mp4`"):
        shown(tmp_path / "b.mp4", 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
def test_damage_never_escapes_as_another_exception(kind: tuple[str, str, str]) -> None:
    data, random_ = clip(range(12), kind), np.random.default_rng(0)
    refused_ = 0
    for number in range(60):
        broken = bytearray(data[: random_.integers(1, len(data) + 1)] if number % 2 else data)
        for position in random_.integers(0, len(broken), size=4):
            broken[position] = random_.integers(256)
        try:
            list(read_frames(bytes(broken), 4))
        except MediaError:
            refused_ += 1
    assert refused_ > 3
