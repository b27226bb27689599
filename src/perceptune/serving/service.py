"""Lifecycle of the parts that answer requests, from listening to shutdown."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from perceptune.serving.chat import Chat
from perceptune.serving.errors import ApiError
from perceptune.serving.examples import Example, Showing
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.media_worker_pool import MediaWorkerPool
from perceptune.serving.metrics import Metrics
from perceptune.serving.remote import Remote
from perceptune.serving.request_parser import RequestParser
from perceptune.serving.runs import Runs
from perceptune.serving.scheduler import Scheduler

Ended = Callable[[BaseException | None], None]


class Service:
    """Loads runs while the server is already listening, and then answers for them."""

    def __init__(
        self, limits: Limits, local: LocalFiles | None, remote: Remote | None, showing: Showing, *, decoders: int,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._limits, self._local, self._remote, self._showing = limits, local, remote, showing
        self._decoders, self._metrics = decoders, metrics
        self._chat: Chat | None = None
        self.examples: Mapping[str, Sequence[Example]] = {}
        self._scheduler: Scheduler | None = None
        self._loading: asyncio.Task[None] | None = None
        self._close: list[Callable[[], None]] = []

    def open(self, runs: Runs) -> None:
        """Start answering for these runs.

        Raises `OSError` if no process can be started, `UserError` if there are no examples to show.
        """
        self._open(runs, self._showing(runs))

    def _open(self, runs: Runs, examples: Mapping[str, Sequence[Example]]) -> None:
        self.examples = examples
        processes = MediaWorkerPool(self._limits, self._decoders, runs.frames)
        self._close.append(processes.close)
        threads = max(1, min(4, os.cpu_count() or 1))
        intake = RequestParser(self._limits, processes, self._local, self._remote, threads)
        self._close.append(intake.close)
        self._scheduler = Scheduler(self._limits, self._metrics)
        self._scheduler.start()
        self._chat = Chat(runs, self._limits, intake, self._scheduler, self._metrics)

    def load(self, runs: Callable[[], Runs], ended: Ended) -> None:
        """Load the runs in a thread, then start answering; `ended` is called with the error, if any."""
        self._loading = asyncio.create_task(self._load(runs, ended))

    async def _load(self, runs: Callable[[], Runs], ended: Ended) -> None:
        def load() -> tuple[Runs, Mapping[str, Sequence[Example]]]:
            found = runs()
            return found, self._showing(found)

        # Any error: no other code would report it.
        loaded, decoders = await asyncio.gather(
            asyncio.to_thread(load), MediaWorkerPool.try_out(), return_exceptions=True
        )
        if isinstance(loaded, BaseException) or decoders is not None:
            ended(loaded if isinstance(loaded, BaseException) else decoders)
            return
        try:
            self._open(*loaded)
        except OSError as error:
            ended(error)
        else:
            ended(None)

    @property
    def status(self) -> str:
        """`ok`, `loading`, or `not ready` after the end."""
        if self._scheduler is not None:
            return "ok" if self._scheduler.alive else "not ready"
        return "not ready" if self._loading is None else "loading"

    @property
    def runs(self) -> Runs:
        """The served runs. Raises `ApiError` while they are loaded."""
        return self.chat.runs

    @property
    def chat(self) -> Chat:
        """The request handler. Raises `ApiError` while the runs are loaded."""
        if self._chat is None:
            raise ApiError(503, "the models are being loaded: try again", code="loading")
        return self._chat

    async def close(self) -> None:
        """End all parts, without waiting for runs that are being loaded."""
        if self._loading is not None:
            self._loading.cancel()
            with suppress(asyncio.CancelledError):
                await self._loading
        if self._scheduler is not None:
            await self._scheduler.close()
        for close in reversed(self._close):
            close()
