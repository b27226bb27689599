"""`POST /v1/chat/completions` and `/v1/responses`: a request from its first byte to the last of its response."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from perceptune.serving.access_log import NOTES
from perceptune.serving.conversation import has_turns
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import MIB, Limits
from perceptune.serving.metrics import Metrics
from perceptune.serving.request_parser import RequestParser
from perceptune.serving.requests import Job
from perceptune.serving.responses import ResponseReply
from perceptune.serving.responses_schema import parsed_response
from perceptune.serving.runs import Runs
from perceptune.serving.scheduler import Admission, Scheduler
from perceptune.serving.schema import ChatRequest, parsed
from perceptune.serving.streaming import Reply

Result = TypeVar("Result")
_HEARD_OUT = 4  # times the limit: read and discarded, or the client could not read the error
NOTE = "X-Perceptune-Note"
UNTRAINED = "trained on single questions, not on conversations"
GONE = 499  # status of a response that no client reads


class Answering(Protocol):
    """What answers a request, complete or streamed."""

    async def whole(self) -> dict[str, Any]: ...

    def pieces(self) -> AsyncIterator[bytes]: ...


# From a body to the question in it, and what makes the answer of the jobs that it becomes.
Reading = Callable[[bytes], tuple[ChatRequest, Callable[[Sequence[Job]], Answering]]]


def read_completion(body: bytes) -> tuple[ChatRequest, Callable[[Sequence[Job]], Answering]]:
    """Read the body of `POST /v1/chat/completions`. Raises `ApiError`."""
    asked = parsed(body)
    return asked, partial(Reply, asked)


def read_response(body: bytes) -> tuple[ChatRequest, Callable[[Sequence[Job]], Answering]]:
    """Read the body of `POST /v1/responses`. Raises `ApiError`."""
    asked = parsed_response(body)
    return asked.to_chat(), partial(ResponseReply, asked)


class Chat:
    """Handler of requests for answers."""

    def __init__(
        self, runs: Runs, limits: Limits, intake: RequestParser, scheduler: Scheduler, metrics: Metrics
    ) -> None:
        self.runs, self._limits, self._intake = runs, limits, intake
        self._scheduler, self._metrics = scheduler, metrics

    async def __call__(self, request: Request, read: Reading = read_completion) -> Response:
        async with AsyncExitStack() as stack:
            admission = await stack.enter_async_context(self._scheduler.admission())
            try:
                return await self._answered(request, read, admission, stack)
            except ClientDisconnect:
                self._metrics.count("cancelled_total")
                return Response(status_code=GONE)

    async def _answered(self, request: Request, read: Reading, admission: Admission, stack: AsyncExitStack) -> Response:
        until = asyncio.get_running_loop().time() + self._limits.seconds
        asked, answering = read(await self._body(request, admission))
        run = self.runs.named(asked.model)
        try:
            async with asyncio.timeout_at(until):
                jobs = await unless_gone(request, self._intake.jobs(asked, run, admission.hold))
        except TimeoutError:
            raise _too_slow() from None
        asked.messages.clear()  # the jobs hold the media now
        request.scope[NOTES] = notes = {"model": run.name, "prompt_tokens": jobs[0].prompt_tokens}
        stack.callback(_cancel, jobs, self._metrics, notes)
        stack.callback(asyncio.get_running_loop().call_at(until, _expire, jobs).cancel)
        for job in jobs:
            job.on_start = admission.leave_queue
        self._scheduler.submit(jobs)
        reply, headers = answering(jobs), _notes(jobs[0])
        if asked.stream:
            return _Events(reply, stack.pop_all(), headers)
        return JSONResponse(await unless_gone(request, reply.whole()), headers=headers)

    async def _body(self, request: Request, admission: Admission) -> bytes:
        """Read the body, in time and within the limits. Raises `ApiError`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page of another origin can send without a preflight
            raise ApiError(415, "the body is JSON: send `Content-Type: application/json`")
        most = int(self._limits.body_mb * MIB)
        told = request.headers.get("content-length", "0")
        if not told.isdecimal() or int(told) > _HEARD_OUT * most:
            raise _too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for block in request.stream():
                    if int(told) > most:
                        continue
                    if len(body) + len(block) > most:
                        raise _too_large(most)
                    admission.hold(len(block))
                    body += block
            if int(told) > most:
                raise _too_large(most)
        except TimeoutError:
            raise ApiError(408, f"the request did not come within {self._limits.body_seconds:g} seconds") from None
        return bytes(body)


class _Events(StreamingResponse):
    """A stream that releases the request's resources, however it ends."""

    def __init__(self, reply: Answering, stack: AsyncExitStack, headers: Mapping[str, str]) -> None:
        headers = {"X-Accel-Buffering": "no", **headers}
        super().__init__(reply.pieces(), media_type="text/event-stream", headers=headers)
        self._stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of some work; if the client disconnects, cancel the work and raise `ClientDisconnect`."""
    doing = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([doing, watching], return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _notes(job: Job) -> dict[str, str]:
    """Return the header that says what a run was not trained for, if the request asks for that."""
    return {NOTE: UNTRAINED} if has_turns(job.sample.history) and not job.run.is_trained_on_conversations else {}


def _cancel(jobs: list[Job], metrics: Metrics, notes: dict[str, Any]) -> None:
    """Cancel the jobs of a finished request that have not ended, and note what it cost."""
    notes["completion_tokens"] = said = sum(len(job.tokens) for job in jobs)
    metrics.count("prompt_tokens_total", jobs[0].prompt_tokens)
    metrics.count("completion_tokens_total", said)
    for job in jobs:
        job.cancel()


def _expire(jobs: list[Job]) -> None:
    for job in jobs:
        job.fail(_too_slow())
        job.cancel()


def _too_slow() -> ApiError:
    return ApiError(503, "the answer was not ready in time", code="timeout")


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most:,} bytes", code="request_too_large")
