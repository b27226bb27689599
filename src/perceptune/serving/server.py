"""The server process: uvicorn, with what it leaves to us."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from perceptune.errors import UserError
from perceptune.serving.limits import Limits

HEADER_BYTES = 32_768
HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 5
SHUTDOWN_SECONDS = 10
_BACKLOG = 2048
_CONNECTIONS = 64  # beside one for each place in the queue and the batch


class Protocol(H11Protocol):
    """Closes a connection whose request's head does not come in time: uvicorn waits for it for ever."""

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


def make_server(app: FastAPI, limits: Limits, host: str, port: int, *, access_log: bool = False) -> uvicorn.Server:
    """A server that is not running yet."""
    return uvicorn.Server(
        uvicorn.Config(
            app, host=host, port=port, http=Protocol, ws="none", lifespan="on", log_level="info", access_log=access_log,
            # Whoever can reach us could say anything in X-Forwarded-For.
            proxy_headers=False, server_header=False, h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            limit_concurrency=limits.queue + limits.batch + _CONNECTIONS,
        )
    )  # fmt: skip


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address. Raises `UserError` if it cannot be, as where another program has the port."""
    if not 0 <= port <= 65_535:  # of a larger number the resolver takes what is left of it in 16 bits
        raise UserError(f"--port {port}: ports are numbers from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: no such address ({error})") from error
    try:
        if os.name == "posix":  # or a server could not be started again at once
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise UserError(f"--host {host} --port {port}: cannot be listened to ({error.strerror})") from error
    return made


def hosts_of(host: str, allowed: Sequence[str]) -> list[str] | None:
    """The names that a server bound to `host` answers to; None for any, where it is bound to all addresses."""
    if is_loopback(host):
        return ["localhost", "127.0.0.1", "::1", host.lower(), *allowed]
    if allowed:
        return [host.lower(), *allowed]
    return None if host in ("0.0.0.0", "::", "") else [host.lower()]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
