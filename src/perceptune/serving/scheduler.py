"""What waits is answered in batches by one thread; nothing waits for a batch to fill.

A batch is the oldest waiting request and all others that can be computed with it. A row that has ended is told at once,
and leaves the computation with the next few. What goes wrong in a batch is found by answering its rows one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import torch

from perceptune.errors import UserError
from perceptune.serving.errors import ApiError
from perceptune.serving.jobs import Job
from perceptune.serving.limits import MIB, Limits
from perceptune.serving.metrics import Metrics


class Scheduler:
    """Admits requests, queues their jobs, and computes them."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._admitted = 0
        self._buffered = 0
        self._waiting: list[Job] = []
        self._news = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="perceptune-answers")
        self._task: asyncio.Task[None] | None = None
        metrics.gauge("queue_depth", "Jobs that wait to be computed", lambda: len(self._waiting))
        metrics.gauge("requests_admitted", "Requests that are read, decoded or wait", lambda: self._admitted)
        metrics.gauge("buffered_bytes", "Bytes of the requests in work", lambda: self._buffered)

    def start(self) -> None:
        """Begins to answer."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends: what waits is refused, what is computed is given up."""
        if self._task is not None:
            self._task.cancel()
        for job in self._waiting:
            job.fail(ApiError(503, "the server is shutting down"))
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @asynccontextmanager
    async def admission(self) -> AsyncIterator[Admission]:
        """A place among the requests in work, until it is given up. Raises `ApiError` if all are taken."""
        if self._admitted >= self._limits.queue:
            self._metrics.count("rejected_total", reason="queue")
            raise ApiError(429, f"{self._limits.queue} requests are waiting already: try again", code="queue_full")
        admission = Admission(self)
        self._admitted += 1
        try:
            yield admission
        finally:
            admission.leave_queue()
            self._buffered -= admission.size

    def buffer(self, admission: Admission, size: int) -> None:
        """Counts bytes that a request holds. Raises `ApiError` if all of them together hold too many."""
        if self._buffered + size > self._limits.buffer_mb * MIB:
            self._metrics.count("rejected_total", reason="memory")
            raise ApiError(429, "the requests in work are too large together: try again", code="buffer_full")
        self._buffered += size
        admission.size += size

    def release(self) -> None:
        self._admitted -= 1

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues them."""
        self._waiting += jobs
        self._news.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            while batch := self._next():
                started = time.monotonic()
                # Not `await` alone: what it raises is of these rows, and the next ones are to be answered.
                done = loop.run_in_executor(self._worker, answer, batch)
                await asyncio.wait([done])
                if (error := done.exception()) is not None:
                    await self._one_by_one(batch, error)
                self._metrics.observe("batch_rows", len(batch))
                self._metrics.observe("batch_seconds", time.monotonic() - started)

    async def _one_by_one(self, batch: Sequence[Job], error: BaseException) -> None:
        """Answers the rows of a batch that failed each alone: those fail that fail alone."""
        loop = asyncio.get_running_loop()
        left = [job for job in batch if not job.ended]
        for job in left:
            found: BaseException | None = error
            if len(batch) > 1:
                job.tokens.clear()
                done = loop.run_in_executor(self._worker, answer, [job])
                await asyncio.wait([done])
                found = done.exception()
            if isinstance(found, UserError):
                job.fail(ApiError(400, str(found)))
            elif found is not None:
                self._metrics.count("failures_total", kind=type(found).__name__)
                job.fail(ApiError(500, "the answer could not be computed"))

    def _next(self) -> list[Job]:
        """The oldest job with those that can go along; jobs that nobody waits for are dropped."""
        self._waiting = [job for job in self._waiting if not job.gone]
        if not self._waiting:
            return []
        kind = self._waiting[0].kind
        batch = [job for job in self._waiting if job.kind == kind][: self._limits.batch]
        taken = set(map(id, batch))
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        for job in batch:
            job.on_start()
        return batch


class Admission:
    """A request's place."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._waits = scheduler, True
        self.size = 0

    def leave_queue(self) -> None:
        """It is being computed: somebody else may wait."""
        if self._waits:
            self._waits = False
            self._scheduler.release()

    def hold(self, size: int) -> None:
        """See `Scheduler.buffer`."""
        self._scheduler.buffer(self, size)


class _Watch:
    """Tells the jobs of a batch their tokens."""

    def __init__(self, jobs: Sequence[Job], eos: int) -> None:
        self._jobs, self._eos = jobs, eos

    def token(self, row: int, token: int) -> bool:
        return self._jobs[row].take(token, self._eos)

    def wanted(self, row: int) -> bool:
        return not self._jobs[row].gone


@torch.no_grad()
def answer(jobs: Sequence[Job]) -> None:
    """Computes a batch of one kind. Raises whatever a model raises."""
    jobs = [job for job in jobs if not job.gone]
    if not jobs:
        return
    run = jobs[0].run
    model, samples = run.model, [job.sample for job in jobs]
    decoding = replace(jobs[0].decoding, max_new_tokens=max(job.decoding.max_new_tokens for job in jobs))
    with run.active(), _handed_in(jobs):
        rows = model.generated(
            *model.prompts(samples), samples, decoding, seeds=[job.decoding.seed for job in jobs],
            watch=_Watch(jobs, model.text.eos),
        )  # fmt: skip
    for job, tokens in zip(jobs, rows, strict=True):
        job.give(tokens)


@contextmanager
def _handed_in(jobs: Sequence[Job]) -> Iterator[None]:
    """The media of these jobs need not be decoded again."""
    decoded = {medium: pixels for job in jobs for medium, pixels in job.decoded.items()}
    stores = jobs[0].run.model.stores.values()
    for store in stores:
        store.loader.decoded = decoded
    try:
        yield
    finally:
        for store in stores:
            store.loader.decoded = {}
