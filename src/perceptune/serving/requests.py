"""State of an answer: the request, the tokens so far, and the waiting client."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from perceptune.lm.generation.generate import TokenConstraint
from perceptune.lm.generation.logprobs import TokenDetail, describe_tokens
from perceptune.serving.errors import ApiError
from perceptune.serving.runs import ServedRun
from perceptune.types import Decoding, Medium, Sample

Reason = Literal["stop", "length"]


@dataclass(eq=False)
class Job:
    """Created and awaited in the server's thread; `tokens`, `reason` and `error` are written in the worker's."""

    run: ServedRun
    sample: Sample
    decoded: Mapping[str, Mapping[Medium, Tensor]]  # its media by modality, as encoder inputs
    decoding: Decoding
    prompt_tokens: int
    stops: tuple[str, ...] = ()
    streams: bool = False  # whether every token is reported at once
    on_start: Callable[[], None] = lambda: None  # called in the server's thread when it leaves the queue
    constraint: TokenConstraint | None = None  # a form that the answer has, which is then not cleaned
    top_logprobs: int | None = None  # number of likeliest tokens to tell with each; None = no log-probabilities
    tokens: list[int] = field(default_factory=list)  # without the end token
    details: list[TokenDetail] = field(default_factory=list)  # of the tokens, and of the end token
    reason: Reason | None = None
    error: ApiError | None = None
    is_cancelled: bool = False  # no client waits for it any more
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kind(self) -> tuple[object, ...]:
        """Key of jobs that are computed together; greedy and sampled ones may differ in length."""
        shape = self.decoding
        length = shape.max_new_tokens if shape.beams > 1 else 0
        search = (shape.beams, shape.length_penalty, shape.length_normalization)
        return (self.run.name, *search, shape.sample, shape.temperature, shape.top_p, length)

    @property
    def ended(self) -> bool:
        return self.reason is not None or self.error is not None

    def clean(self, text: str) -> str:
        """Return the answer in a generated text."""
        return self.run.clean(text) if self.constraint is None else text

    def restart(self) -> None:
        """Forget what was generated, to compute the answer again."""
        self.tokens.clear()
        self.details.clear()
        if self.constraint is not None:
            self.constraint.reset()

    def cancel(self) -> None:
        """Cancel the job: it leaves its batch, or never enters one."""
        self.is_cancelled = True

    async def changed(self) -> None:
        """Wait for a token or the end."""
        await self._changed.wait()
        self._changed.clear()

    def append_token(self, token: int, eos: int) -> bool:
        """Append a token, in the worker's thread; return False if it was the last."""
        if self.is_cancelled or self.ended:
            return False
        if token == eos:
            self.end("stop")
            return False
        self.tokens.append(token)
        if self._stopped():
            self.end("stop")
        elif len(self.tokens) >= self.decoding.max_new_tokens:
            self.end("length")
        elif self.streams:
            self._notify()
        return not self.ended

    def append_logits(self, logits: Tensor, token: int) -> None:
        """Keep the log-probabilities of the next token, from logits (1, vocab), in the worker's thread."""
        assert self.top_logprobs is not None
        self.details += describe_tokens(logits, [token], self.top_logprobs)

    def set_tokens(self, tokens: list[int]) -> None:
        """Set all tokens at once, for searches; does nothing if the job has ended."""
        if not self.ended:
            most = self.decoding.max_new_tokens
            self.tokens = tokens[:most]
            self.end("stop" if len(tokens) < most or self._stopped() else "length")

    def end(self, reason: Reason) -> None:
        self.reason = reason
        self._notify()

    def fail(self, error: ApiError) -> None:
        """End the job with an error in place of an answer."""
        if not self.ended:
            self.error = error
            self._notify()

    def _stopped(self) -> bool:
        if not self.stops:
            return False
        text = self.run.model.text.decode(self.tokens)
        return any(stop in text for stop in self.stops)

    def _notify(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)
