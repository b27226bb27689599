"""A line of JSON for each request: when it came, what it was, how it ended. No text and no medium of a user."""

import json
import re
import sys
import time
import uuid
from collections.abc import MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any

REQUEST_ID = b"x-request-id"
_VALID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
NOTES = "perceptune"  # key of the scope under which routes leave what the line says of their request


def request_id(headers: MutableMapping[bytes, bytes]) -> str:
    """Return the id that a client or a proxy gave the request, if it is a valid one, else a new one."""
    given = headers.get(REQUEST_ID, b"").decode("latin-1")
    return given if _VALID.fullmatch(given) else uuid.uuid4().hex


def write_line(scope: MutableMapping[str, Any], ident: str, status: int, started: float) -> None:
    """Print the line of a request that has ended; `started` is its monotonic time."""
    seconds = time.monotonic() - started
    came = datetime.now(UTC) - timedelta(seconds=seconds)
    line = {
        "time": came.isoformat(timespec="milliseconds"),
        "id": ident, "client": (scope.get("client") or ("",))[0], "method": scope["method"],
        "path": scope["path"][:200], "status": status, "seconds": round(seconds, 4), **scope.get(NOTES, {}),
    }  # fmt: skip
    print(json.dumps(line), file=sys.stderr, flush=True)
