"""JSON of the answers: complete, or streamed."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from perceptune.serving.errors import ApiError
from perceptune.serving.requests import Job
from perceptune.serving.schema import ChatRequest


class Reply:
    """One completion of a request: the same text complete or streamed."""

    def __init__(self, asked: ChatRequest, jobs: Sequence[Job]) -> None:
        self._asked, self.jobs = asked, jobs
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    async def whole(self) -> dict[str, Any]:
        """Wait for every answer and return the response. Raises `ApiError` if one fails."""
        for job in self.jobs:
            await finished(job)
        choices = [
            {
                "index": index, "message": {"role": "assistant", "content": content(job), "refusal": None},
                "logprobs": logprobs(job), "finish_reason": job.reason,
            }
            for index, job in enumerate(self.jobs)
        ]  # fmt: skip
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage()}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield server-sent events. An error after the first event is the last event."""
        waiting = {asyncio.create_task(job.changed()): index for index, job in enumerate(self.jobs)}
        told, scored = [""] * len(self.jobs), [Scored(job) for job in self.jobs]
        try:
            for index in range(len(self.jobs)):
                yield self._event(index, {"role": "assistant", "content": ""})
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = waiting.pop(task)
                    job = self.jobs[index]
                    ended = job.ended  # before the text is read: tokens come from another thread
                    if job.error is not None:
                        raise job.error
                    text = content(job) if ended else sure(job, told[index])
                    if text.startswith(told[index]) and text != told[index]:
                        yield self._event(index, {"content": text[len(told[index]) :]}, scored=scored[index])
                        told[index] = text
                    if ended:
                        yield self._event(index, {}, job.reason, scored=scored[index])
                    else:
                        waiting[asyncio.create_task(job.changed())] = index
            if self._asked.stream_options and self._asked.stream_options.include_usage:
                yield _line({**self._chunk([]), "usage": self.usage()})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _line(error.body())
        finally:
            for task in waiting:
                task.cancel()

    def usage(self) -> dict[str, int]:
        """Return the token counts of prompt and answers, without end tokens; media count only inside the text."""
        said = sum(len(job.tokens) for job in self.jobs)
        read = self.jobs[0].prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}

    def _event(
        self, index: int, delta: dict[str, str], reason: str | None = None, scored: "Scored | None" = None
    ) -> bytes:
        found = None if scored is None else scored.news()
        return _line(self._chunk([{"index": index, "delta": delta, "logprobs": found, "finish_reason": reason}]))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}


async def finished(job: Job) -> None:
    """Wait for the end. Raises the job's error."""
    while not job.ended:
        await job.changed()
    if job.error is not None:
        raise job.error


def content(job: Job) -> str:
    """Return the text of a finished answer, as `perceptune answer` prints it."""
    return job.clean(cut(job.run.text.decode(job.tokens), job.stops))


def sure(job: Job, told: str) -> str:
    """Return the part of the answer that can no longer change; what later tokens may alter is held back."""
    raw = job.run.text.decode(list(job.tokens))
    if cut(raw, job.stops) != raw:
        return told
    # Half a character, half a stop string, a letter whose lower case depends on the next one.
    held = max([1, *map(len, job.stops)])
    # Cleaned again: without the part held back, trailing blanks and full stops may be cut off.
    return job.clean(job.clean(raw.rstrip("\ufffd"))[:-held])


class Scored:
    """The log-probabilities of a streamed answer, each told once."""

    def __init__(self, job: Job) -> None:
        self._job, self._told = job, 0

    def news(self) -> dict[str, Any] | None:
        """Return those of the tokens since the last call."""
        start, self._told = self._told, len(self._job.tokens)
        return logprobs(self._job, start, self._told)


def logprobs(job: Job, start: int = 0, end: int | None = None) -> dict[str, Any] | None:
    """Return the log-probabilities of an answer's tokens from `start` to `end`, without the end token's."""
    if job.top_logprobs is None:
        return None
    text = job.run.text
    tokens = job.tokens[start:end]  # first: those of another thread come after their details
    found = []
    for token, detail in zip(tokens, job.details[start : start + len(tokens)], strict=True):
        top = [_entry(text.token(other), value) for other, value in detail.top]
        found.append({**_entry(text.token(token), detail.logprob), "top_logprobs": top})
    return {"content": found, "refusal": None}


def _entry(token: str, logprob: float) -> dict[str, Any]:
    is_whole = "\ufffd" not in token  # else a part of a character, whose bytes are not known here
    return {"token": token, "logprob": logprob, "bytes": [*token.encode()] if is_whole else None}


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of the strings."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _line(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
