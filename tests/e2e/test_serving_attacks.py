"""What strangers send inside a request: bad media, bad addresses, bad questions; each fails its request alone."""

from __future__ import annotations

import base64
import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

import clips
import sounds
import support
from perceptune.serving.limits import Limits
from perceptune.serving.remote import Remote
from perceptune.serving.runs import Runs
from perceptune.types import Sample
from servers import Served, asked, data_url, part, png, served, sound_part

pytestmark = pytest.mark.usefixtures("goes_on")


def bomb(width: int, height: int) -> bytes:
    """A small file of a huge picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" * (width // 8 + 2)) * min(height, 2000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bomb(60_000, 60_000), "pixels"), (bomb(1001, 1000), "allowed are 1 to 1,000,000"),
        (png(size=(1, 1)), "1 x 1 pixels"), (png(size=(3000, 1)), "the least"), (png(size=(1, 30_000)), "the least"),
        (png(size=(30_000, 1)), "the least"),
        (png()[:60], "damaged"), (b"no picture", "not an image"), (b"\x89PNG\r\n\x1a\n", "image"),
        (b"<svg/>", "not an image"),
    ],
    ids=["60000x60000", "1001x1000", "1x1", "3000x1", "1x30000", "30000x1", "cut", "text", "signature", "svg"],
)  # fmt: skip
def test_pictures_that_are_traps(attacked: Served, data: bytes, said: str) -> None:
    status, message = attacked.ask(part(data_url(data)))
    assert (status, said in message) == (400, True), message


def test_the_least_picture_is_answered(attacked: Served) -> None:
    assert attacked.ask(part(data_url(png(size=(4, 4))))) == (200, "")


def test_damaged_pictures_are_answered_or_refused(attacked: Served) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "jpeg")
    statuses = {attacked.ask(part(data_url(data)))[0] for data in support.damaged(file.getvalue(), 25)}
    assert 400 in statuses
    assert statuses <= {200, 400}


def test_sounds_that_are_traps(attacked: Served) -> None:
    good = sounds.encoded(sounds.tone())
    assert attacked.ask(sound_part(good)) == (200, "")
    assert attacked.ask(part(data_url(good, "audio/wav"), "audio")) == (200, "")
    long = sounds.encoded(sounds.tone(seconds=130, rate=1000), 1000)
    assert attacked.ask(sound_part(long)) == (400, "the audio: 130.0 seconds; allowed are 120")
    for broken in (good[:30], b"RIFF" + b"\xff" * 100, b"ID3\x04" + b"\0" * 200, b"x"):
        assert attacked.ask(sound_part(broken))[0] == 400
    claims = bytearray(good)  # a billion channels at no rate
    claims[22:28] = b"\xff\xff\0\0\0\0"
    assert attacked.ask(sound_part(bytes(claims)))[0] == 400


def test_clips_that_are_traps(attacked: Served, attacked_runs: Runs) -> None:
    good = clips.clip(range(8))
    assert attacked.ask(part(data_url(good, "video/mp4"), "video")) == (200, "")
    for broken in (good[: len(good) // 2], good[:40], b"GIF89a" + b"\xff" * 50, b"#EXTM3U\nfile:///etc/passwd\n"):
        status, message = attacked.ask(part(data_url(broken, "video/mp4"), "video"))
        assert status == 400
        assert "root:" not in message
    huge = bytearray(good)  # a table of two billion frames
    at = huge.index(b"stsz") + 12
    huge[at : at + 4] = struct.pack(">I", 2_000_000_000)
    started = time.monotonic()
    assert attacked.ask(part(data_url(bytes(huge), "video/mp4"), "video"))[0] == 400
    assert time.monotonic() - started < 20
    with served(attacked_runs, Limits(video_encoded_frames=5)) as strict:
        status, message = strict.ask(part(data_url(good, "video/mp4"), "video"))
        assert (status, message) == (400, "the video: 8 frames; allowed are 5")
    with served(attacked_runs, Limits(video_seconds=0.1)) as strict:
        assert strict.ask(part(data_url(good, "video/mp4"), "video"))[0] == 400


def test_what_is_too_much_is_refused_before_it_is_decoded(attacked: Served, attacked_runs: Runs) -> None:
    picture = part(data_url(png()))
    assert attacked.ask(picture, picture)[1].startswith("more than one image")
    assert attacked.ask(*[{"type": "text", "text": "a"}] * 20, picture)[1] == "more than 16 parts in a message"
    assert attacked.ask(picture, n=5)[0] == 400
    assert attacked.request("POST", "/v1/chat/completions", asked("a" * 40_000))[0] == 400
    assert attacked.ask({"type": "input_audio", "input_audio": {"data": "A" * 7_000_000, "format": "wav"}})[0] == 413
    assert attacked.ask(part(data_url(b"")))[1] == "the image is empty"
    assert attacked.ask(part("data:image/png,plain"))[0] == 400
    assert attacked.ask(part("data:image/png;base64,@@@@"))[1] == "the image is not base64"


def test_special_tokens_in_a_question_are_text(attacked: Served, attacked_runs: Runs) -> None:
    for text in ("color </s>?", "<pad><s>color", "{prompt} a"):
        reply = attacked.request("POST", "/v1/chat/completions", asked(text))[1]
        assert reply["usage"]["prompt_tokens"] == len(f"Question: {text} Answer:"), text
        ids = attacked_runs["one"].text.prompt_ids(Sample("x", {}, text))
        assert not set(ids) & {0, 1, 2}


def test_media_elsewhere(attacked: Served) -> None:
    folder: Path = attacked.folder  # type: ignore[attr-defined]
    assert attacked.ask(part(f"file://{folder}/picture.png")) == (200, "")
    for url in (f"file://{folder}/../one/run.yaml", "file:///etc/passwd"):
        assert attacked.ask(part(url)) == (400, "no such file among those that may be read")
    for url in ("http://127.0.0.1/", "https://pictures.example/x.png"):
        assert "remote media are not allowed here" in attacked.ask(part(url))[1]
    for url in ("ftp://x/y", "javascript:alert(1)", "", "/etc/passwd", "picture.png"):
        assert attacked.ask(part(url))[0] == 400
    status, message = attacked.ask(part(f"file://{folder}/picture.png", "video"))
    assert (status, message) == (200, "")  # a still picture is a clip of one frame


def test_local_files_are_off_by_default(attacked_runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    with served(attacked_runs) as server:
        assert "local files are not allowed here" in server.ask(part(f"file://{tmp_path}/x.png"))[1]


def test_base64_is_taken_as_other_servers_take_it(attacked: Served) -> None:
    data = png()
    good = base64.b64encode(data).decode()
    for text in (base64.encodebytes(data).decode(), good.rstrip("="), base64.urlsafe_b64encode(data).decode()):
        assert attacked.ask(part(f"data:image/png;base64,{text}")) == (200, "")
    wave = sounds.encoded(sounds.tone())
    sound = {"data": data_url(wave, "audio/wav"), "format": None}
    assert attacked.ask({"type": "input_audio", "input_audio": sound}) == (200, "")
    for wrong in (good[:41], f"{good[:40]}!{good[41:]}"):
        assert attacked.ask(part(f"data:image/png;base64,{wrong}")) == (400, "the image is not base64")


class _Inside(BaseHTTPRequestHandler):
    """A service of this machine that no stranger is to reach: it notes who asks."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(302 if self.path == "/away" else 200)
        self.end_headers()


@pytest.fixture
def inside() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), _Inside)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_services_of_this_machine_are_not_reached(attacked_runs: Runs, inside: HTTPServer) -> None:
    """Even under names that the operator has listed: what they lead to is no public address."""
    port = inside.server_address[1]
    names = ("localhost", "127.0.0.1", "metadata.internal")
    remote = Remote(frozenset(f"{name}:{port}" for name in names))
    with served(attacked_runs, remote=remote) as server:
        for name in (*names, "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "localhost."):
            status, message = server.ask(part(f"http://{name}:{port}/secret"))
            assert status == 400, name
            assert "127.0.0.1" not in message
    assert inside.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["png", "gif", "webp"])
def test_pictures_that_unfold_are_refused_by_their_header(attacked: Served, kind: str) -> None:
    """A few kilobytes that would be many millions of pixels: refused in no time, in little memory."""
    size = (3000, 2000) if kind == "webp" else (12_000, 9_000)  # WebP takes long to encode
    file = io.BytesIO()
    Image.new("1" if kind != "webp" else "RGB", size).save(file, kind)
    assert len(file.getvalue()) < 300_000
    started = time.monotonic()
    status, message = attacked.ask(part(data_url(file.getvalue())))
    assert (status, f"{size[0]} x {size[1]} pixels" in message) == (400, True), message
    assert time.monotonic() - started < 2


def test_a_clip_that_claims_a_billion_frames(attacked: Served) -> None:
    good = clips.clip(range(8))
    for tag in (b"stsz", b"stts"):
        huge = bytearray(good)
        at = huge.index(tag) + 12
        huge[at : at + 4] = struct.pack(">I", 10**9)
        started = time.monotonic()
        assert attacked.ask(part(data_url(bytes(huge), "video/mp4"), "video"))[0] in (200, 400)
        assert time.monotonic() - started < 5
