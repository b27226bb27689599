"""Fetching of files at URLs that others wrote, which must not make this machine access its own network.

One parser serves check and fetch; every redirect is checked like the first URL; a name is resolved once, all its
addresses must be public, and the checked one is connected to. Errors contain no information on resolved addresses.
"""

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from perceptune.errors import UserError
from perceptune.utils.addresses import is_public

HOPS = 3
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_BLOCK = 65_536
_REDIRECTS = (301, 302, 303, 307, 308)

Resolve = Callable[[str, int], Sequence[str]]
Dial = Callable[[str, int, float], socket.socket]


class RemoteError(UserError):
    """A file that is not fetched; `why` is the reason alone."""

    def __init__(self, why: str) -> None:
        super().__init__(f"a remote medium cannot be used: {why}")
        self.why = why


class TooLargeError(RemoteError):
    """A file larger than `most` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(f"it is larger than {most:,} bytes")


class Target(NamedTuple):
    """Parts of a URL, parsed once."""

    scheme: str
    host: str
    port: int
    path: str


def resolve(host: str, port: int) -> list[str]:
    """Return every address of a name."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def dial(address: str, port: int, seconds: float) -> socket.socket:
    """Connect to exactly this address."""
    return socket.create_connection((address, port), timeout=seconds)


@dataclass(frozen=True)
class Remote:
    """Fetches from `domains` (`host` or `host:port`) alone, or from every public host if it is None.

    `headers` are sent with each request; tests replace `resolve` and `dial`. Raises `UserError` for an invalid domain.
    """

    domains: frozenset[str] | None
    resolve: Resolve = resolve
    dial: Dial = dial
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for domain in self.domains or ():
            host, _, port = domain.partition(":")
            if not _HOST.fullmatch(host) or (port and not port.isdecimal()):
                raise UserError(f"--allowed-media-domains: `{domain}` is not a host, or host:port, in lower case")

    def fetch(self, url: str, most: int, seconds: float) -> bytes:
        """Fetch at most `most` bytes. Raises `RemoteError`, whose message contains no more than a client may know."""
        deadline = time.monotonic() + seconds
        target = self._checked(url)
        for _ in range(HOPS + 1):
            got = self._get(target, most, deadline)
            if isinstance(got, bytes):
                return got
            port = target.port
            target = self._checked(urljoin(f"{target.scheme}://{target.host}:{port}{target.path}", got), target)
        raise RemoteError("too many redirects")

    def _checked(self, url: str, before: Target | None = None) -> Target:
        """Return the parts of a URL that may be fetched. Raises `RemoteError`."""
        target = parse(url)
        allowed = {target.host} if target.port == _PORTS[target.scheme] else set()
        if self.domains is not None and not self.domains & (allowed | {f"{target.host}:{target.port}"}):
            raise RemoteError("this address is not allowed here")
        # A redirect may change the port only from http to https; the reverse is not allowed.
        if before is not None and (before.scheme, before.port) != (target.scheme, target.port):
            upwards = (before.scheme, before.port, target.scheme, target.port) == ("http", 80, "https", 443)
            if not upwards:
                raise RemoteError("a redirect to another port or scheme")
        return target

    def _get(self, target: Target, most: int, deadline: float) -> bytes | str:
        """Return the bytes, or the URL of a redirect."""
        try:
            addresses = list(self.resolve(target.host, target.port))
            if not addresses or not all(is_public(address) for address in addresses):
                raise RemoteError("this address is not allowed here")
            connection = _Pinned(target, addresses[0], self.dial, _left(deadline))
            # The socket's own timeout restarts with every byte.
            end = threading.Timer(_left(deadline), connection.hang_up)
            end.start()
            try:
                headers = {"Accept-Encoding": "identity", "Connection": "close", **self.headers}
                connection.request("GET", target.path, headers=headers)
                with connection.getresponse() as response:
                    if response.status in _REDIRECTS:
                        return response.getheader("Location") or ""
                    if response.status != 200:
                        raise RemoteError(f"it answered with status {response.status}")
                    return _read(response, most, deadline)
            finally:
                end.cancel()
                connection.close()
        except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            raise RemoteError("it cannot be fetched") from error


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, under the host name it was resolved from."""

    def __init__(self, target: Target, address: str, dial: Dial, seconds: float) -> None:
        super().__init__(target.host, target.port)
        self._target, self._address, self._dial, self._seconds = target, address, dial, seconds
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        self.sock = self._dial(self._address, self._target.port, self._seconds)
        self.sock.settimeout(self._seconds)
        if self._target.scheme == "https":
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._target.host)
        self._socket = self.sock

    def hang_up(self) -> None:
        """Abort any blocking call, from another thread."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def parse(url: str) -> Target:
    """Parse an http(s) URL. Raises `RemoteError` for one that two programs could read differently."""
    if len(url) > 8192 or any(ord(char) <= 32 or ord(char) >= 127 or char in '\\"<>^`{|}' for char in url):
        raise RemoteError("it has characters that do not belong into an address")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RemoteError("it is not an address") from None
    host = (parts.hostname or "").removesuffix(".")
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or "@" in parts.netloc:
        raise RemoteError("only http:// and https:// with a plain host name")
    path = parts.path or "/"
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], f"{path}?{parts.query}" if parts.query else path)


def _read(response: http.client.HTTPResponse, most: int, deadline: float) -> bytes:
    if (response.length or 0) > most:
        raise TooLargeError(most)
    data = bytearray()
    while block := response.read1(_BLOCK):
        data += block
        if len(data) > most:
            raise TooLargeError(most)
        _left(deadline)
    _left(deadline)
    if response.length:  # bytes that were announced and did not arrive
        raise RemoteError("it ended too early")
    return bytes(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise RemoteError("it takes too long")
    return left
