"""The end of a server: answers in work are finished, and new requests are told to go elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from perceptune.serving.errors import ApiError


class Drain:
    """Counts requests in work, and refuses new ones once it has begun."""

    def __init__(self) -> None:
        self.active = 0
        self._until: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the server is about to end."""
        return self._until is not None

    def begin(self, seconds: float) -> None:
        """Refuse new requests, and give those in work `seconds` to end. Calls after the first change nothing."""
        if self._until is None:
            self._until = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether the server can end: nothing is in work any more, or the time is over."""
        return self._until is not None and (self.active == 0 or time.monotonic() >= self._until)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request while it is in work. Raises `ApiError` for one that came too late."""
        if self.has_begun:
            raise ApiError(503, "the server is shutting down: ask another one", code="shutting_down")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
