"""JSON of the answers of `POST /v1/responses`: complete, or streamed as events."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from perceptune.serving.errors import ApiError
from perceptune.serving.requests import Job
from perceptune.serving.responses_schema import ResponseRequest
from perceptune.serving.streaming import Scored, content, finished, logprobs, sure


class ResponseReply:
    """One response: the same text complete or streamed."""

    def __init__(self, asked: ResponseRequest, jobs: Sequence[Job]) -> None:
        self._asked, [self._job] = asked, jobs
        self._ids = {"response": f"resp_{uuid.uuid4().hex}", "item": f"msg_{uuid.uuid4().hex}"}
        self._created, self._number = int(time.time()), -1
        self._scored = Scored(self._job)

    async def whole(self) -> dict[str, Any]:
        """Wait for the answer and return the response. Raises `ApiError` if it fails."""
        await finished(self._job)
        return self._ended()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield server-sent events. An error after the first event is the last event."""
        place = {"output_index": 0, "item_id": self._ids["item"], "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        begun = {**self._item("in_progress", []), "content": []}
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=begun)
        yield self._event("response.content_part.added", **place, part=empty)
        told = ""
        try:
            while True:
                ended = self._job.ended  # before the text is read: tokens come from another thread
                if self._job.error is not None:
                    raise self._job.error
                text = content(self._job) if ended else sure(self._job, told)
                if text.startswith(told) and text != told:
                    news = _listed(self._scored.news())
                    yield self._event("response.output_text.delta", **place, delta=text[len(told) :], logprobs=news)
                    told = text
                if ended:
                    break
                await self._job.changed()
        except ApiError as error:
            said = error.body()["error"]
            yield self._event("error", code=said["code"], message=said["message"], param=said["param"])
            failed = {"code": said["code"] or "server_error", "message": said["message"]}
            yield self._event("response.failed", response={**self._response("failed"), "error": failed})
            return
        whole = self._ended()
        [item] = whole["output"]
        [part] = item["content"]
        yield self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def _ended(self) -> dict[str, Any]:
        status = "completed" if self._job.reason == "stop" else "incomplete"
        part = {
            "type": "output_text", "text": content(self._job), "annotations": [],
            "logprobs": _listed(logprobs(self._job)),
        }  # fmt: skip
        said, read = len(self._job.tokens), self._job.prompt_tokens
        return {
            **self._response(status), "output": [self._item(status, [part])],
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "usage": {
                "input_tokens": read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": said,
                "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + said,
            },
        }  # fmt: skip

    def _response(self, status: str) -> dict[str, Any]:
        asked, used = self._asked, self._job.decoding
        return {
            "id": self._ids["response"], "object": "response", "created_at": self._created, "status": status,
            "model": asked.model, "output": [], "error": None, "incomplete_details": None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "parallel_tool_calls": False, "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None}, "store": False,
            "temperature": used.temperature if used.sample else 0.0, "text": {"format": {"type": "text"}},
            "tool_choice": "none", "tools": [], "top_p": used.top_p, "truncation": "disabled", "usage": None,
        }  # fmt: skip

    def _item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "message", "id": self._ids["item"], "status": status, "role": "assistant", "content": parts}

    def _event(self, kind: str, **data: Any) -> bytes:
        self._number += 1
        event = json.dumps({"type": kind, "sequence_number": self._number, **data}, ensure_ascii=False)
        return f"event: {kind}\ndata: {event}\n\n".encode()


def _listed(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return log-probabilities as this API has them."""
    return [] if found is None else found["content"]
