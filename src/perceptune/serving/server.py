"""The server process: uvicorn, and our additions to it."""

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from perceptune.errors import UserError
from perceptune.serving.drain import Drain
from perceptune.serving.limits import Limits

HEADER_BYTES = 32_768
HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 5
SHUTDOWN_SECONDS = 10
_BACKLOG = 2048
_CONNECTIONS = 64  # beside one for each place in the queue and the batch


class Protocol(H11Protocol):
    """Closes a connection whose request's head does not arrive in time; uvicorn alone would wait forever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)
        elif not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """Ends at SIGTERM once the answers in work are finished; at a second one, and at SIGINT, at once."""

    def __init__(self, config: uvicorn.Config, drain: Drain, seconds: float) -> None:
        super().__init__(config)
        self._drain, self._seconds = drain, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; called by uvicorn in the main thread."""
        if sig == signal.SIGTERM and not self._drain.has_begun:
            self._drain.begin(self._seconds)  # not told to uvicorn, which would raise the signal again at the end
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end now; called by uvicorn ten times a second."""
        self.should_exit |= self._drain.is_over
        return await super().on_tick(counter)


def make_server(app: FastAPI, limits: Limits, host: str, port: int, *, drain: Drain | None = None) -> Server:
    """Return a server that is not running yet; `drain` is that of its application."""
    return Server(
        uvicorn.Config(
            app, host=host, port=port, http=Protocol, ws="none", lifespan="on", log_level="info", access_log=False,
            # Clients could send any X-Forwarded-For.
            proxy_headers=False, server_header=False, h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            limit_concurrency=limits.queue + limits.batch + _CONNECTIONS,
        ),
        drain or Drain(), limits.drain_seconds,
    )  # fmt: skip


def listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises `UserError` if that fails, e.g. if another program uses the port."""
    if not 0 <= port <= 65_535:  # the resolver reduces a larger number to 16 bits
        raise UserError(f"--port {port}: ports are numbers from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: no such address ({error})") from error
    try:
        if os.name == "posix":  # otherwise a server could not be restarted at once
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise UserError(f"--host {host} --port {port}: cannot be listened to ({error.strerror})") from error
    return made


def hosts_of(host: str, allowed: Sequence[str]) -> list[str] | None:
    """Return the host names that a bound server accepts; None for any, if it is bound to all addresses."""
    if is_loopback(host):
        return ["localhost", "127.0.0.1", "::1", host.lower(), *allowed]
    if allowed:
        return [host.lower(), *allowed]
    return None if host in ("0.0.0.0", "::", "") else [host.lower()]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
