"""The next item is prepared in one background thread while the present one is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Items by number. What `make` raises is raised by `take`, in the thread that asks."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def start(self, number: int) -> None:
        """Begins to prepare an item."""
        self._ahead = number, self._thread.submit(self._make, number)

    def get(self, number: int) -> T:
        """The item: the prepared one, or made now if another one was prepared."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            return ahead[1].result()
        if ahead is not None:
            wait([ahead[1]])
        return self._make(number)

    def wait(self) -> None:
        """Waits until the thread is idle: the tokenizer serves one thread at a time."""
        if self._ahead is not None:
            wait([self._ahead[1]])

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)
