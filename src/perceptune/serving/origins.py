"""Cross-origin requests (CORS): only from listed origins, and never from an opaque one."""

import re
from collections.abc import Collection, Sequence

from starlette.responses import Response

from perceptune.errors import UserError
from perceptune.serving.errors import ApiError

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_ANY = "*"
# No `Access-Control-Allow-Credentials`: the page's own code sends the key, never the browser.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, *",  # `*` does not include Authorization
    "Access-Control-Max-Age": "600",
}

Header = tuple[bytes, bytes]


class Origins:
    """Origins whose pages may read responses. `allowed` holds `scheme://host[:port]`, or `*` for all."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(allowed)

    def headers_for(self, origin: bytes | None) -> Sequence[Header]:
        """Return the headers that let a page of this origin read a response; none for others."""
        if not self._allowed:
            return ()
        vary = (b"vary", b"Origin")
        if origin is None or not self._allows(origin):
            return (vary,)
        named = _ANY.encode() if _ANY in self._allowed else origin
        return (
            (b"access-control-allow-origin", named),
            (b"access-control-expose-headers", b"Retry-After, X-Perceptune-Note"),
            vary,
        )

    def preflight(self, origin: bytes) -> Response:
        """Return the response to a browser's CORS preflight. Raises `ApiError` for an origin that is not allowed."""
        if not self._allows(origin):
            shown = origin.decode("latin-1")[:100]
            raise ApiError(403, f"pages of `{shown}` may not ask this server (see --allowed-origins)", code="origin")
        return Response(status_code=204, headers=_PREFLIGHT)

    def _allows(self, origin: bytes) -> bool:
        return _ANY in self._allowed or origin.decode("latin-1").lower() in self._allowed


def parse_origins(listed: Sequence[str]) -> list[str]:
    """Return the origins that `--allowed-origins` lists, as browsers write them. Raises `UserError`."""
    return [_parse(one) for one in listed]


def _parse(given: str) -> str:
    origin = given.lower().removesuffix("/")
    if origin == _ANY:
        return origin
    if origin == "null":
        raise UserError("--allowed-origins: `null` is any page that hides where it is from; `*` allows all pages")
    if not _ORIGIN.fullmatch(origin):
        raise UserError(f"--allowed-origins: `{given}` is no origin: scheme://host[:port], as https://app.example")
    scheme, _, host = origin.partition("://")
    return f"{scheme}://{host.removesuffix({'http': ':80', 'https': ':443'}.get(scheme, '/'))}"
