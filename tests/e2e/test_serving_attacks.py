"""What strangers send: each bad request fails itself, and the server goes on as before."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clips
import perceptune
import runs as dwarf_runs
import sounds
import support
from perceptune.checkpoint import save_run
from perceptune.serving import server as serving_server
from perceptune.serving.errors import ApiError
from perceptune.serving.intake import _room
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.runs import Runs, load_runs
from perceptune.spliced import SplicedModel
from perceptune.types import Decoding, Sample
from servers import KEY, Served, asked, data_url, part, png, served, sound_part


@pytest.fixture(scope="module")
def loaded(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run that sees, hears and watches."""
    place = tmp_path_factory.mktemp("attacked") / "one"
    encoders = {name: {"id": str(dwarfs / "encoder")} for name in ("image", "audio", "video")}
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(place, perceptune.build(dwarf_runs.recipe(dwarfs, encoders=encoders, method=method)))
    return load_runs([str(place)], Limits())


@pytest.fixture(scope="module")
def server(loaded: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("media")
    (folder / "picture.png").write_bytes(png())
    with served(loaded, Limits(image_pixels=1_000_000, audio_mb=5), local=LocalFiles(folder)) as running:
        running.folder = folder  # type: ignore[attr-defined]
        yield running


@pytest.fixture(autouse=True)
def _goes_on(server: Served) -> Iterator[None]:
    """After every attack a good request is answered as before, and none has failed on the server's side."""
    good = server.chat()
    yield
    assert server.chat()[1]["choices"] == good[1]["choices"]
    assert server.settles("buffered_bytes", 0)
    assert server.settles("requests_admitted", 0)
    failed = [line for line in server.text("GET", "/metrics")[1].splitlines() if 'status="5' in line]
    assert failed == []


def ask(server: Served, *media: dict[str, Any], **more: Any) -> tuple[int, str]:
    """Status and message, empty if there is none."""
    status, answer = server.chat(media=list(media), **more)
    return status, answer.get("error", {}).get("message", "")


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
        (png()[:60], "damaged"), (b"no picture", "not an image"), (b"\x89PNG\r\n\x1a\n", "image"),
        (b"<svg/>", "not an image"),
    ],
    ids=["60000x60000", "1001x1000", "1x1", "3000x1", "1x30000", "cut", "text", "signature", "svg"],
)  # fmt: skip
def test_pictures_that_are_traps(server: Served, data: bytes, said: str) -> None:
    status, message = ask(server, part(data_url(data)))
    assert (status, said in message) == (400, True), message


def test_the_least_picture_is_answered(server: Served) -> None:
    assert ask(server, part(data_url(png(size=(4, 4))))) == (200, "")


def test_damaged_pictures_are_answered_or_refused(server: Served) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "jpeg")
    statuses = {ask(server, part(data_url(data)))[0] for data in support.damaged(file.getvalue(), 25)}
    assert 400 in statuses
    assert statuses <= {200, 400}


def test_sounds_that_are_traps(server: Served) -> None:
    good = sounds.encoded(sounds.tone())
    assert ask(server, sound_part(good)) == (200, "")
    assert ask(server, part(data_url(good, "audio/wav"), "audio")) == (200, "")
    long = sounds.encoded(sounds.tone(seconds=130, rate=1000), 1000)
    assert ask(server, sound_part(long)) == (400, "the sound: 130.0 seconds; allowed are 120")
    for broken in (good[:30], b"RIFF" + b"\xff" * 100, b"ID3\x04" + b"\0" * 200, b"x"):
        assert ask(server, sound_part(broken))[0] == 400
    claims = bytearray(good)  # a billion channels at no rate
    claims[22:28] = b"\xff\xff\0\0\0\0"
    assert ask(server, sound_part(bytes(claims)))[0] == 400


def test_clips_that_are_traps(server: Served, loaded: Runs) -> None:
    good = clips.clip(range(8))
    assert ask(server, part(data_url(good, "video/mp4"), "video")) == (200, "")
    for broken in (good[: len(good) // 2], good[:40], b"GIF89a" + b"\xff" * 50, b"#EXTM3U\nfile:///etc/passwd\n"):
        status, message = ask(server, part(data_url(broken, "video/mp4"), "video"))
        assert status == 400
        assert "root:" not in message
    huge = bytearray(good)  # a table of two billion frames
    at = huge.index(b"stsz") + 12
    huge[at : at + 4] = struct.pack(">I", 2_000_000_000)
    started = time.monotonic()
    assert ask(server, part(data_url(bytes(huge), "video/mp4"), "video"))[0] == 400
    assert time.monotonic() - started < 20
    with served(loaded, Limits(video_encoded_frames=5)) as strict:
        status, message = ask(strict, part(data_url(good, "video/mp4"), "video"))
        assert (status, message) == (400, "the clip: 8 frames; allowed are 5")
    with served(loaded, Limits(video_seconds=0.1)) as strict:
        assert ask(strict, part(data_url(good, "video/mp4"), "video"))[0] == 400


def test_what_is_too_much_is_refused_before_it_is_decoded(server: Served, loaded: Runs) -> None:
    picture = part(data_url(png()))
    assert ask(server, picture, picture)[1].startswith("more than one image")
    assert ask(server, *[{"type": "text", "text": "a"}] * 20, picture)[1] == "more than 16 parts in a message"
    assert ask(server, picture, max_tokens=513)[1] == "at most 512 tokens, not 513"
    with pytest.raises(ApiError, match="24 tokens of the question and 120 of the answer are more than the 128"):
        _room(Decoding(max_new_tokens=120), 24, replace(loaded["one"], positions=128))
    assert ask(server, picture, n=5)[0] == 400
    assert server.request("POST", "/v1/chat/completions", asked("a" * 40_000))[0] == 400
    assert ask(server, {"type": "input_audio", "input_audio": {"data": "A" * 7_000_000, "format": "wav"}})[0] == 413
    assert ask(server, part(data_url(b"")))[1] == "the image is empty"
    assert ask(server, part("data:image/png,plain"))[0] == 400
    assert ask(server, part("data:image/png;base64,@@@@"))[1] == "the image is not base64"


def test_the_body_is_not_read_beyond_its_limit(loaded: Runs) -> None:
    with served(loaded, Limits(body_mb=0.01)) as server:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += "Content-Type: application/json\r\n"
        assert b" 413 " in server.raw((head + "Content-Length: 99999999\r\n\r\n").encode())  # nothing of it was sent
        chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
        assert b" 413 " in server.raw((head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunk * 3)
        # One that is not far too large is heard out, or its client would see a broken connection and no status.
        assert server.request("POST", "/v1/chat/completions", asked("a" * 30_000))[0] == 413
        assert server.settles("buffered_bytes", 0)


def test_special_tokens_in_a_question_are_text(server: Served, loaded: Runs) -> None:
    for text in ("color </s>?", "<pad><s>color", "{prompt} a"):
        reply = server.request("POST", "/v1/chat/completions", asked(text))[1]
        assert reply["usage"]["prompt_tokens"] == len(f"Question: {text} Answer:"), text
        ids = loaded["one"].text.prompt_ids(Sample("x", {}, text))
        assert not set(ids) & {0, 1, 2}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421), ({"Host": "127.0.0.1.evil.example:80"}, 421), ({"Host": "localhost:9"}, 200),
        ({"Content-Type": "text/plain"}, 415), ({"Content-Encoding": "gzip"}, 415), ({"Authorization": "Basic x"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401), ({"Authorization": f"bearer {KEY}"}, 200),
        ({"X-Forwarded-For": "8.8.8.8", "X-Api-Key": KEY}, 200), ({"Authorization": ""}, 401),
    ],
)  # fmt: skip
def test_headers(server: Served, headers: dict[str, str], status: int) -> None:
    assert server.text("POST", "/v1/chat/completions", asked(), headers=headers)[0] == status


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/version", "/docs", "/openapi.json", "/nowhere", "//health", "/health/"]
)
def test_the_key_is_asked_for_everywhere_but_at_health(server: Served, path: str) -> None:
    assert server.text("GET", path, key=None)[0] == 401
    assert server.text("GET", "/health", key=None)[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 5\r\nContent-Length: 6", "Host: evil.x",
        "Content-Length: 5\r\nContent-Length: 5\r\nContent-Type: application/json", "Transfer-Encoding: gzip, chunked",
        "Content-Length: -1", "Content-Length: +5", "Authorization: Bearer x", "X: " + "a" * 100_000, "Bad Name: x",
    ],
)  # fmt: skip
def test_requests_that_end_in_two_places_or_say_things_twice(server: Served, lines: str) -> None:
    """And nothing that is smuggled behind them is taken for a request."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n\r\n"
    behind = "0\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY + "\r\n\r\n"
    answer = server.raw((head + behind).encode())
    assert answer.split(b" ")[1] in (b"400", b"501", b"415")
    assert b'{"version"' not in answer


def test_slow_clients_are_let_go(loaded: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_server, "HEADER_SECONDS", 0.3)
    with served(loaded, Limits(body_seconds=0.3)) as server:
        started = time.monotonic()
        assert server.raw(b"GET /health HTTP/1.1\r\nHost: loc") == b""
        assert server.raw(b"") == b""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        assert b" 408 " in server.raw(head.encode())
        # A second request on the same connection, begun and never ended.
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while not got.endswith(b'{"status":"ok"}'):
                got += connection.recv(4096)
            connection.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert connection.recv(4096) == b""
        assert time.monotonic() - started < 4
        assert server.settles("requests_admitted", 0)


def test_a_full_queue_says_so(loaded: Runs) -> None:
    with served(loaded, Limits(queue=1)) as server:
        body = json.dumps(asked()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as holding:
            holding.sendall(head.encode() + body[:10])
            assert server.settles("requests_admitted", 1)
            status, answer = server.chat()
            assert (status, answer["error"]["code"]) == (429, "queue_full")
            holding.sendall(body[10:])
            assert b" 200 " in holding.recv(1000)
        assert server.chat()[0] == 200


def test_a_row_that_fails_leaves_the_others_of_its_batch(loaded: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, release = SplicedModel.prompts, threading.Event()

    def failing(self: SplicedModel, samples: Any) -> Any:
        release.wait(5)
        if any(sample.prompt == "poison" for sample in samples):
            raise RuntimeError("not told to anybody")
        return prompts(self, samples)

    with served(loaded) as server:
        right = server.chat()[1]["choices"]
        monkeypatch.setattr(SplicedModel, "prompts", failing)
        got: dict[int, tuple[int, dict[str, Any]]] = {}
        texts = ["color?", "color?", "poison", "color?"]

        def send(i: int) -> None:
            got[i] = server.request("POST", "/v1/chat/completions", asked(texts[i]))

        threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert server.settles("queue_depth", 3)  # the first is being computed, the others go together
        release.set()
        for thread in threads:
            thread.join()
        assert [got[i][0] for i in range(4)] == [200, 200, 500, 200]
        assert all(got[i][1]["choices"] == right for i in (0, 1, 3))
        assert "not told" not in json.dumps(got[2])


def test_an_answer_that_takes_too_long(loaded: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = SplicedModel.prompts

    def slow(self: SplicedModel, samples: Any) -> Any:
        time.sleep(1)
        return prompts(self, samples)

    with served(loaded, Limits(seconds=0.7)) as server:
        monkeypatch.setattr(SplicedModel, "prompts", slow)
        status, answer = server.chat()
        assert (status, answer["error"]["code"]) == (503, "timeout")
        streamed = server.text("POST", "/v1/chat/completions", asked(stream=True))
        assert streamed[0] == 200
        assert '"code":"timeout"' in streamed[1]
        assert "[DONE]" not in streamed[1]


def test_media_elsewhere(server: Served) -> None:
    folder: Path = server.folder  # type: ignore[attr-defined]
    assert ask(server, part(f"file://{folder}/picture.png")) == (200, "")
    for url in (f"file://{folder}/../one/run.yaml", "file:///etc/passwd"):
        assert ask(server, part(url)) == (400, "no such file among those that may be read")
    for url in ("http://127.0.0.1/", "https://pictures.example/x.png"):
        assert "remote media are not allowed here" in ask(server, part(url))[1]
    for url in ("ftp://x/y", "javascript:alert(1)", "", "/etc/passwd", "picture.png"):
        assert ask(server, part(url))[0] == 400
    status, message = ask(server, part(f"file://{folder}/picture.png", "video"))
    assert (status, message) == (200, "")  # a still picture is a clip of one frame


def test_local_files_are_off_by_default(loaded: Runs, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    with served(loaded) as server:
        assert "local files are not allowed here" in ask(server, part(f"file://{tmp_path}/x.png"))[1]


def test_base64_is_strict(server: Served) -> None:
    """Nothing is passed over: what two programs would decode in two ways is refused."""
    good = base64.b64encode(png()).decode()
    for wrong in (good[:40] + "\n" + good[40:], good[:41], "-_" + good[2:], good + "="):
        assert ask(server, part(f"data:image/png;base64,{wrong}"))[0] == 400
