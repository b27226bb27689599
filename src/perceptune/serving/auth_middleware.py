"""Checks before every route: key, host, origin and size. The body is not read here."""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.responses import Response

from perceptune.serving.access_log import REQUEST_ID, request_id, write_line
from perceptune.serving.drain import Drain
from perceptune.serving.errors import ApiError
from perceptune.serving.metrics import Metrics
from perceptune.serving.origins import Origins

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ANSWERING = ("/v1/chat/completions", "/v1/responses")
_SINGLE = (
    b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization", b"content-encoding", b"origin"
)  # fmt: skip
_HEADERS = [
    (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"),
    # The page shows its user's own media; it loads nothing from elsewhere and contains no inline code.
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; media-src data:; "
     b"object-src 'none'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"),
]  # fmt: skip


class AuthMiddleware:
    """An ASGI middleware. `hosts` are the names this server accepts, None for any; with `key` None none is required.

    `open_routes` need no key: exact paths. `origins` are those whose pages may send requests.
    """

    def __init__(
        self, app: App, *, key: str | None, hosts: Collection[str] | None, metrics: Metrics, routes: Collection[str],
        open_routes: Collection[str], origins: Origins, drain: Drain, access_log: bool = False,
    ) -> None:  # fmt: skip
        self._app, self._hosts, self._metrics, self._routes, self._origins = app, hosts, metrics, routes, origins
        self._open, self._drain, self._logs = frozenset(open_routes), drain, access_log
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started, status, is_head = time.monotonic(), 500, scope.get("method") == "HEAD"
        ident = request_id(dict(scope.get("headers", ())))

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = self._origins.headers_for(dict(scope.get("headers", ())).get(b"origin"))
                named = (REQUEST_ID, ident.encode())
                message["headers"] = [*message.get("headers", ()), *_HEADERS, named, *added]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            try:
                answer = self._answer_instead(scope)
            except ApiError as error:
                answer = error.response()
            if answer is not None:
                await answer(scope, receive, sending)
                return
            # HEAD gets the response of GET without its body.
            await self._passed_on({**scope, "method": "GET"} if is_head else scope, receive, sending)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.count("requests_total", route=route, status=str(status))
            if route in ANSWERING:
                self._metrics.observe("request_seconds", time.monotonic() - started)
            if self._logs and scope["type"] == "http":
                write_line(scope, ident, status, started)

    async def _passed_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to its route; those for answers are counted, and refused while the server ends."""
        if scope["path"] not in ANSWERING:
            await self._app(scope, receive, send)
            return
        try:
            with self._drain.counted():
                await self._app(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    def _answer_instead(self, scope: Scope) -> Response | None:
        """Return the response to a browser's CORS preflight; None for a request to be processed.

        Raises `ApiError` for a request to be rejected.
        """
        headers = self._checked_headers(scope)
        if scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers:
            return self._origins.preflight(headers[b"origin"])  # a preflight never has a key
        if self._key is not None and scope["path"] not in self._open:
            self._check_key(headers.get(b"authorization", b""))
        return None

    def _checked_headers(self, scope: Scope) -> dict[bytes, bytes]:
        """Raise `ApiError` for headers that two programs could read differently, and for the host of another server."""
        if scope["type"] != "http":
            raise ApiError(400, "only HTTP")
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _SINGLE and name in headers:
                raise ApiError(400, f"the header `{name.decode('latin-1')}` is given twice")
            headers[name] = value
        # Two programs on the way may disagree on where such a request ends.
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise ApiError(400, "content-length and transfer-encoding exclude one another")
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(415, "a compressed body is not taken")
        # DNS rebinding: a page in a browser can make its own name resolve to this server, and the host is that name.
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            raise ApiError(421, "this server does not answer to that host name (see --allowed-hosts)")
        return headers

    def _check_key(self, given: bytes) -> None:
        scheme, _, key = given.partition(b" ")
        # Hashes have equal lengths, so the time of the comparison does not depend on the key.
        same = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._key or b"")
        if scheme.lower() != b"bearer" or not same:
            raise ApiError(401, "wrong or missing API key: send `Authorization: Bearer KEY`", code="invalid_api_key")


def _host(header: bytes) -> str:
    """Return a host header without its port, in lower case."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text.partition("]")[0].removeprefix("[")
    return text.rpartition(":")[0] if text.rpartition(":")[2].isdecimal() and ":" in text else text
