"""Served dwarfs: a real server on a port of its own, in a thread, and what its clients send."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from PIL import Image

from perceptune.serving import runs
from perceptune.serving.app import Access, make_app
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from perceptune.serving.server import make_server

KEY = "a-key-of-the-tests"


def load_runs(given: Sequence[str], limits: Limits, **options: Any) -> Runs:
    """Runs named as on the command line."""
    return runs.load_runs(runs.describe_runs(given), limits, **options)


class Served:
    """Where a server listens."""

    def __init__(self, port: int, app: Any) -> None:
        self.port, self.app = port, app
        self.base = f"http://127.0.0.1:{port}"

    def client(self, key: str = KEY, **given: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=30, **given)

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, key: str | None = KEY
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON, without a client's niceties."""
        status, text = self.text(method, path, body, headers=headers, key=key)
        return status, json.loads(text)

    def text(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, key: str | None = KEY
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        try:
            connection.request(method, path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def headers(
        self, method: str, path: str, headers: dict[str, str] | None = None, *, key: str | None = KEY
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by their small names, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {"Authorization": f"Bearer {key}"} if key else {}
            connection.request(method, path, headers={**given, **(headers or {})})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def chat(self, **given: Any) -> tuple[int, dict[str, Any]]:
        return self.request("POST", "/v1/chat/completions", asked(**given))

    def ask(self, *media: dict[str, Any], **more: Any) -> tuple[int, str]:
        """Status and message, empty if there is none."""
        status, answer = self.chat(media=list(media), **more)
        return status, answer.get("error", {}).get("message", "")

    def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """What comes back for these bytes until the server ends the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            parts = []
            while part := connection.recv(65_536):
                parts.append(part)
        return b"".join(parts)

    def metric(self, name: str) -> float:
        """The sum over a counter's labels, or a gauge."""
        lines = [line for line in self.text("GET", "/metrics")[1].splitlines() if line.startswith(f"perceptune_{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def settles(self, name: str, value: float, seconds: float = 5) -> bool:
        """Whether a metric comes to be `value`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.metric(name) == value:
                return True
            time.sleep(0.02)
        return False


@contextmanager
def served(runs: Runs | Callable[[], Runs], limits: Limits | None = None, **access: Any) -> Iterator[Served]:
    limits = limits or Limits()
    app = make_app(runs, limits, Access(**{"key": KEY, **access}), decoders=1)
    server = make_server(app, limits, "127.0.0.1", 0)
    server.config.log_level = "critical"
    server.config.configure_logging()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def png(color: Any = "red", size: tuple[int, int] = (20, 18)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "png")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(url: str, kind: str = "image") -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def sound_part(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def turn(role: str, *content: Any) -> dict[str, Any]:
    """A message: of a text alone, or of parts, among which texts may stand as they are."""
    if len(content) == 1 and isinstance(content[0], str):
        return {"role": role, "content": content[0]}
    return {"role": role, "content": [text_part(one) if isinstance(one, str) else one for one in content]}


def asked(text: str = "color?", *media: dict[str, Any], model: str = "one", **more: Any) -> dict[str, Any]:
    """A chat completion's body; without `media` in `more` a red picture goes along."""
    parts = list(media) or more.pop("media", [part(data_url(png()))])
    content = [{"type": "text", "text": text}, *parts]
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def photo(folder: Path, color: Any = "red") -> Path:
    path = folder / "photo.png"
    path.write_bytes(png(color))
    return path
