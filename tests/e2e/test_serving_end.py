"""How a server ends at SIGTERM, and what it notes of each request: a real process with real clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import perceptune
import runs as dwarf_runs
from perceptune.models.run_folder import save_run
from perceptune.serving.drain import Drain
from perceptune.serving.errors import ApiError
from servers import Served, asked


@pytest.fixture
def folder(dwarfs: Path, tmp_path: Path) -> Path:
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(tmp_path / "one", perceptune.build(dwarf_runs.recipe(dwarfs, method=method)))
    return tmp_path / "one"


@pytest.fixture
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Served]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "perceptune", "serve", f"one={folder}", "--port", str(port), "--access-log"]
    started = subprocess.Popen(
        [*command, "--tokens", "1500", "--decoders", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PERCEPTUNE_API_KEY": "k"},
    )  # fmt: skip
    server = Served(port, None)
    try:
        end = time.monotonic() + 120
        while True:
            assert started.poll() is None, started.communicate()
            assert time.monotonic() < end
            try:
                if server.request("GET", "/health", key=None)[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
            time.sleep(0.1)
        yield started, server
    finally:
        started.kill()
        started.communicate()


def test_answers_in_work_end_and_new_ones_are_refused(process: tuple[subprocess.Popen[str], Served]) -> None:
    started, server = process
    body = json.dumps(asked(stream=True, max_tokens=1500)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer k\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-Request-Id: mine-1\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as going:
        going.sendall(head.encode() + body)
        told = going.recv(65_536)
        while b'"content":"' not in told.replace(b'"content":""', b""):
            told += going.recv(65_536)
        started.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while (answer := server.request("POST", "/v1/chat/completions", asked(), key="k"))[
            0
        ] == 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert (answer[0], answer[1]["error"]["code"]) == (503, "shutting_down")
        assert server.request("GET", "/health", key=None) == (503, {"status": "shutting down"})
        while not told.rstrip().endswith(b"0") and b"[DONE]" not in told:
            part = going.recv(65_536)
            assert part, "the answer was cut off"
            told += part
    assert b"x-request-id: mine-1" in told.lower()
    assert started.wait(30) == 0
    _, said = started.communicate()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    [whole] = [line for line in lines if line["id"] == "mine-1"]
    assert (whole["status"], whole["model"], whole["path"]) == (200, "one", "/v1/chat/completions")
    assert whole["completion_tokens"] > 0
    assert whole["seconds"] > 0
    assert [line["status"] for line in lines if line["status"] == 503], "the refused one has a line, too"
    assert "color?" not in said, "no text of a user"


def test_requests_are_counted_until_they_end() -> None:
    drain = Drain()
    with drain.counted():
        drain.begin(60)
        assert not drain.is_over
        with pytest.raises(ApiError, match="shutting down"), drain.counted():
            pass
        assert drain.active == 1
    assert drain.is_over


def test_the_time_to_end_is_limited() -> None:
    drain = Drain()
    with drain.counted():
        drain.begin(0)
        assert drain.is_over


def test_ids_of_requests(process: tuple[subprocess.Popen[str], Served]) -> None:
    _, server = process
    for given, kept in (("abc-1", True), ("a b\u00e9", False), ("x" * 200, False)):
        headers = {"X-Request-Id": given.encode("latin-1").decode("latin-1")}
        found = server.headers("GET", "/version", headers, key="k")[1]["x-request-id"]
        assert (found == given) is kept
        assert found.isascii()
    one, two = (server.headers("GET", "/version", key="k")[1]["x-request-id"] for _ in range(2))
    assert one != two
