"""The parts that answer requests, from the moment the server listens to its end."""

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
    """Loads runs while the server listens already, and answers for them then."""

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
        """Answers for these from now on.

        Raises `OSError` where no process can be started, `UserError` where there are no examples to be shown.
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
        """Loads them in a thread, then answers; `ended` is told when that is done, or what went wrong."""
        self._loading = asyncio.create_task(self._load(runs, ended))

    async def _load(self, runs: Callable[[], Runs], ended: Ended) -> None:
        def load() -> tuple[Runs, Mapping[str, Sequence[Example]]]:
            found = runs()
            return found, self._showing(found)

        # All that a thread may raise: there is nobody else to hear of it.
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
        """`ok`, `loading`, or `not ready` where it has ended."""
        if self._scheduler is not None:
            return "ok" if self._scheduler.alive else "not ready"
        return "not ready" if self._loading is None else "loading"

    @property
    def runs(self) -> Runs:
        """Raises `ApiError` while they are loaded."""
        return self.chat.runs

    @property
    def chat(self) -> Chat:
        """Raises `ApiError` while the runs are loaded."""
        if self._chat is None:
            raise ApiError(503, "the models are being loaded: try again", code="loading")
        return self._chat

    async def close(self) -> None:
        """Ends all of it; runs that are being loaded are not waited for."""
        if self._loading is not None:
            self._loading.cancel()
            with suppress(asyncio.CancelledError):
                await self._loading
        if self._scheduler is not None:
            await self._scheduler.close()
        for close in reversed(self._close):
            close()
