"""Continuous batching in one worker thread: after each token finished requests leave and waiting ones join.

No request waits for a batch to fill or to end. A finished row is reported at once, and its place is free. After an
error in a group its rows are computed one by one to find the cause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from perceptune.errors import UserError
from perceptune.serving.batch_groups import BatchGroup, merge_groups, start_groups
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import MIB, Limits
from perceptune.serving.metrics import Metrics
from perceptune.serving.requests import Job
from perceptune.serving.turns import TurnReuse

Result = TypeVar("Result")


class Scheduler:
    """Admits requests, queues their jobs, and computes them."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._reuse = TurnReuse(limits.reuse_mb, metrics)
        self.admitted = 0
        self._buffered = 0
        self._waiting: list[Job] = []
        self._groups: list[BatchGroup] = []
        self._news = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="perceptune-answers")
        self._task: asyncio.Task[None] | None = None
        metrics.gauge("queue_depth", "Jobs that wait to be computed", lambda: len(self._waiting))
        metrics.gauge("requests_admitted", "Requests that are read, decoded or wait", lambda: self.admitted)
        metrics.gauge("buffered_bytes", "Bytes of the requests in work", lambda: self._buffered)

    def start(self) -> None:
        """Start the worker."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop the worker; reject waiting jobs and cancel running ones."""
        if self._task is not None:
            self._task.cancel()
        for job in [*self._waiting, *(job for group in self._groups for job in group.jobs)]:
            job.fail(ApiError(503, "the server is shutting down"))
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @asynccontextmanager
    async def admission(self) -> AsyncIterator[Admission]:
        """Yield a place among the concurrent requests. Raises `ApiError` if all are taken."""
        if self.admitted >= self._limits.queue:
            self._metrics.count("rejected_total", reason="queue")
            raise ApiError(429, f"{self._limits.queue} requests are waiting already: try again", code="queue_full")
        admission = Admission(self)
        self.admitted += 1
        try:
            yield admission
        finally:
            admission.leave_queue()
            self._buffered -= admission.size

    def buffer(self, size: int) -> None:
        """Count bytes that a request holds in memory. Raises `ApiError` if all requests together exceed the limit."""
        if self._buffered + size > self._limits.buffer_mb * MIB:
            self._metrics.count("rejected_total", reason="memory")
            raise ApiError(429, "the requests in work are too large together: try again", code="buffer_full")
        self._buffered += size

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs."""
        self._waiting += jobs
        self._news.set()

    async def _run(self) -> None:
        while True:
            if not (self._groups or self._waiting):
                await self._news.wait()
            self._news.clear()
            started = time.monotonic()
            for jobs in self._startable():
                self._groups += await self._computed(partial(start_groups, jobs, self._reuse), jobs) or []
            if not self._groups:
                continue
            everyone = [job for group in self._groups for job in group.jobs]
            self._groups = await self._computed(partial(merge_groups, self._groups), everyone) or []
            for group in list(self._groups):
                if not await self._computed(group.step, group.jobs):
                    self._groups.remove(group)
            self._metrics.observe("batch_rows", len(everyone))
            self._metrics.observe("batch_seconds", time.monotonic() - started)

    async def _computed(self, work: Callable[[], Result], jobs: Sequence[Job]) -> Result | None:
        """Return the result of some work in the thread; None if it fails: then these jobs were computed one by one."""
        # Not `await` alone: its error concerns these rows, and the others must still be computed.
        done = asyncio.get_running_loop().run_in_executor(self._worker, work)
        await asyncio.wait([done])
        error = done.exception()
        if error is None:
            return done.result()
        left = [job for job in jobs if not (job.ended or job.is_cancelled)]
        for job in left:
            if len(jobs) > 1:  # cancelled ones may be the cause, too
                job.restart()
                error = await self._alone(job)
            if isinstance(error, UserError):
                job.fail(ApiError(400, str(error)))
            elif error is not None:
                self._metrics.count("failures_total", kind=type(error).__name__)
                job.fail(ApiError(500, "the answer could not be computed"))
        return None

    async def _alone(self, job: Job) -> BaseException | None:
        """Compute a job alone; return its error, if any."""

        def whole() -> None:
            for group in start_groups([job], self._reuse):
                while group.step():
                    pass

        done = asyncio.get_running_loop().run_in_executor(self._worker, whole)
        await asyncio.wait([done])
        return done.exception()

    def _startable(self) -> list[list[Job]]:
        """Return the longest-waiting jobs that there is room for, by kind; cancelled ones are dropped."""
        self._waiting = [job for job in self._waiting if not job.is_cancelled]
        room = self._limits.batch - sum(len(group.jobs) for group in self._groups)
        starting, self._waiting = self._waiting[: max(room, 0)], self._waiting[max(room, 0) :]
        kinds: dict[Hashable, list[Job]] = {}
        for job in starting:
            job.on_start()
            kinds.setdefault(job.kind, []).append(job)
        return list(kinds.values())


class Admission:
    """A request's place."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._waits, self.size = scheduler, True, 0

    def leave_queue(self) -> None:
        """Leave the queue when computation starts, so that another request may enter it."""
        if self._waits:
            self._waits = False
            self._scheduler.admitted -= 1

    def hold(self, size: int) -> None:
        """Count held bytes, see `Scheduler.buffer`."""
        self._scheduler.buffer(size)
        self.size += size
