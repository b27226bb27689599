"""A server on this machine that passes for one on the internet."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from perceptune.utils.remote import Remote

PUBLIC = "93.184.216.34"
HOST = "http://media.example"


class QuietHandler(BaseHTTPRequestHandler):
    """Does not mind clients that leave."""

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().handle()


class MediaHandler(QuietHandler):
    """Sends the file of the path, or follows its status: `/404`."""

    def do_GET(self) -> None:
        server: Any = self.server
        path = self.path.partition("?")[0]
        server.asked[self.path] += 1
        data = server.files.get(path)
        self.send_response(200 if data is not None else int(path.strip("/") or 404))
        self.end_headers()
        self.wfile.write(data or b"")


class MediaWeb:
    """Sends `files`; `asked` counts the requests for each path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.addresses = [PUBLIC]
        self.server: Any = ThreadingHTTPServer(("127.0.0.1", 0), MediaHandler)
        self.server.daemon_threads = True
        self.server.files, self.server.asked = self.files, self.asked
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def remote(self) -> Remote:
        return Remote(None, self._resolve, self._dial)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _resolve(self, _: str, __: int) -> Sequence[str]:
        return self.addresses

    def _dial(self, _: str, __: int, seconds: float) -> socket.socket:
        return socket.create_connection(self.server.server_address[:2], timeout=seconds)
