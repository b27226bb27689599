"""One answer on its way: what is asked, the tokens so far, and who waits for it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from perceptune.serving.errors import ApiError
from perceptune.serving.runs import ServedRun
from perceptune.types import Decoding, Medium, Sample

Reason = Literal["stop", "length"]


@dataclass(eq=False)
class Job:
    """Made and waited for in the server's thread; `tokens`, `reason` and `error` are written in the worker's."""

    run: ServedRun
    sample: Sample
    decoded: Mapping[Medium, Tensor]  # its media, as the encoder takes them
    decoding: Decoding
    prompt_tokens: int
    stops: tuple[str, ...] = ()
    streams: bool = False  # whether every token is told at once
    on_start: Callable[[], None] = lambda: None  # called in the server's thread when it leaves the queue
    tokens: list[int] = field(default_factory=list)  # without the end token
    reason: Reason | None = None
    error: ApiError | None = None
    is_cancelled: bool = False  # nobody waits for it any more
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of the same kind are answered together; greedy ones and drawn ones may end at different lengths."""
        shape = self.decoding
        length = shape.max_new_tokens if shape.beams > 1 else 0
        search = (shape.beams, shape.length_penalty, shape.length_normalization)
        return (self.run.name, *search, shape.sample, shape.temperature, shape.top_p, length)

    @property
    def ended(self) -> bool:
        return self.reason is not None or self.error is not None

    def cancel(self) -> None:
        """Nobody waits any more: it leaves its batch, or never enters one."""
        self.is_cancelled = True

    async def changed(self) -> None:
        """Waits for a token, or the end."""
        await self._changed.wait()
        self._changed.clear()

    def append_token(self, token: int, eos: int) -> bool:
        """A token from the worker; False if it was the last."""
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

    def set_tokens(self, tokens: list[int]) -> None:
        """All tokens at once, where they came from a search; nothing if it has ended already."""
        if not self.ended:
            most = self.decoding.max_new_tokens
            self.tokens = tokens[:most]
            self.end("stop" if len(tokens) < most or self._stopped() else "length")

    def end(self, reason: Reason) -> None:
        self.reason = reason
        self._notify()

    def fail(self, error: ApiError) -> None:
        """Instead of an answer."""
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
