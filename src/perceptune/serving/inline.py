"""Media inside a request: `data:` URLs, and base64 as other servers' decoders accept it."""

import base64
import binascii
import re

from perceptune.serving.errors import ApiError

_PREFIX = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
# Line breaks and blanks are removed, the alphabet of URLs and file names is mapped to the standard one.
_PLAIN = str.maketrans("-_", "+/", " \t\r\n\v\f")


def decode_address(url: str, most: int, kind: str) -> bytes:
    """Return the bytes of a `data:` URL. Raises `ApiError` for another form, and for more than `most` bytes."""
    found = _PREFIX.match(url)
    if found is None or not found[1].rstrip().lower().endswith(";base64"):
        raise ApiError(400, f"the {kind}: a data address is data:TYPE;base64,DATA", param="messages")
    return decode_base64(url[found.end() :], most, kind)


def decode_base64(data: str, most: int, kind: str) -> bytes:
    """Decode base64; line breaks, `-_` for `+/` and missing padding are accepted.

    Raises `ApiError` for anything else that is not base64, and for more than `most` bytes.
    """
    data = data.translate(_PLAIN).rstrip("=")
    if len(data) > 4 * (most // 3 + 1):
        raise _too_large(most, kind)
    try:
        decoded = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"the {kind} is not base64", param="messages", code="invalid_media") from None
    if not decoded:
        raise ApiError(400, f"the {kind} is empty", param="messages", code="invalid_media")
    if len(decoded) > most:
        raise _too_large(most, kind)
    return decoded


def _too_large(most: int, kind: str) -> ApiError:
    return ApiError(413, f"the {kind} is larger than {most:,} bytes", param="messages", code="media_too_large")
