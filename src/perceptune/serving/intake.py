"""From a request to jobs: media fetched, checked and decoded under the server's limits, the question under the LM's."""

from __future__ import annotations

import asyncio
import base64
import binascii
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from torch import Tensor

from perceptune.errors import UserError, nearest
from perceptune.serving.decoding import Decoders
from perceptune.serving.errors import ApiError
from perceptune.serving.jobs import Job
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.remote import Remote
from perceptune.serving.runs import Run
from perceptune.serving.schema import ChatRequest, InputAudioPart, Part, TextPart
from perceptune.types import Decoding, Medium, Sample

_FETCHERS = 4
_COLD = 1e-6  # a temperature below it chooses as 0 does; logits divided by a much smaller one are infinite


class Intake:
    """Makes jobs. `local` and `remote` are None where such media are not allowed."""

    def __init__(
        self, limits: Limits, decoders: Decoders, local: LocalFiles | None, remote: Remote | None, threads: int
    ) -> None:
        self._limits, self._decoders, self._local, self._remote = limits, decoders, local, remote
        self._fetching = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="perceptune-fetch")
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="perceptune-decode")

    def close(self) -> None:
        """Ends its threads."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)

    async def jobs(self, asked: ChatRequest, run: Run) -> list[Job]:
        """One for each answer wanted. Raises `ApiError`."""
        text, parts = self._within_limits(asked)
        decoding = self._decoding_of(asked, run)
        kinds = [_modality(part) for part in parts]
        for place, kind in enumerate(kinds):
            if kind not in run.model.stores:
                known = nearest(kind, run.model.stores)
                raise ApiError(400, f"model `{run.name}` takes no {kind}{known}", param="messages", code="no_encoder")
            if kind in kinds[:place]:
                raise ApiError(400, f"more than one {kind}: this model takes one", param="messages")
        if run.needs_image and "image" not in kinds:
            raise ApiError(400, f"model `{run.name}` speaks about pictures only: send one", param="messages")
        prompt = self._prompt(Sample("question", {}, text), run)
        decoding = _room(decoding, prompt, run)
        media = {kind: await self._bytes(part, kind) for kind, part in zip(kinds, parts, strict=True)}
        decoded: dict[Medium, Tensor] = {}
        for kind, data in media.items():
            decoded[data] = await self._decoded(await self._decoders.check(data, kind), kind, run)
        sample = Sample("question", media, text)
        return [
            Job(run, sample, decoded, replace(decoding, seed=decoding.seed + i), prompt, asked.stops, asked.stream)
            for i in range(asked.n)
        ]

    def _within_limits(self, asked: ChatRequest) -> tuple[str, list[Part]]:
        """The question, before any medium is looked at."""
        limits = self._limits
        if any(not isinstance(one.content, str) and len(one.content) > limits.parts for one in asked.messages):
            raise ApiError(400, f"more than {limits.parts} parts in a message", param="messages")
        if asked.n > limits.choices:
            raise ApiError(400, f"at most {limits.choices} answers to one question", param="n")
        text, parts = asked.question
        if len(text) > limits.text_chars:
            raise ApiError(400, f"the question has more than {limits.text_chars:,} characters", param="messages")
        return text, parts

    def _decoding_of(self, asked: ChatRequest, run: Run) -> Decoding:
        """The run's, changed as far as the request says so."""
        decoding = run.decoding
        wanted = asked.max_completion_tokens or asked.max_tokens
        if wanted is not None:
            if wanted > self._limits.tokens:
                most = f"at most {self._limits.tokens} tokens, not {wanted}"
                raise ApiError(400, most, param="max_tokens", code="too_many_tokens")
            decoding = replace(decoding, max_new_tokens=wanted, max_length=None)
        cold = asked.temperature is not None and asked.temperature < _COLD
        if cold:
            decoding = replace(decoding, sample=False, temperature=1.0, top_p=1.0)
        elif asked.temperature is not None:
            decoding = replace(decoding, sample=True, beams=1, temperature=asked.temperature)
        if asked.top_p is not None and not cold:
            decoding = replace(decoding, top_p=asked.top_p)
        return decoding if asked.seed is None else replace(decoding, seed=asked.seed)

    def _prompt(self, sample: Sample, run: Run) -> int:
        """Number of its tokens. Raises `ApiError` for a question that the LM cannot take."""
        try:
            return run.prompt_tokens(sample)
        except UserError as error:
            raise ApiError(400, str(error).removeprefix("sample `question`: "), param="messages") from error

    async def _bytes(self, part: Part, kind: str) -> bytes:
        most = self._limits.bytes_of(kind)
        if isinstance(part, InputAudioPart):
            return _base64(part.input_audio.data, most, kind)
        assert not isinstance(part, TextPart)
        url = getattr(part, part.type).url
        scheme, _, rest = url.partition(":")
        scheme = scheme.lower()
        if scheme == "data":
            about, comma, data = rest.partition(",")
            if not comma or not about.endswith(";base64"):
                raise ApiError(400, f"the {kind}: a data address is data:TYPE;base64,DATA", param="messages")
            return _base64(data, most, kind)
        if scheme == "file" and self._local is not None:
            return await self._in_thread(partial(self._local.read, url, most))
        if scheme in ("http", "https") and self._remote is not None:
            return await self._in_thread(partial(self._remote.fetch, url, most, self._limits.fetch_seconds(kind)))
        what = {"file": "local files are", "http": "remote media are", "https": "remote media are"}.get(scheme)
        why = f"{what} not allowed here" if what else "an address begins with data:, http:, https: or file:"
        raise ApiError(400, f"the {kind}: {why}; send it as data:TYPE;base64,DATA", param="messages")

    async def _in_thread(self, read: partial[bytes]) -> bytes:
        data = await asyncio.get_running_loop().run_in_executor(self._fetching, read)
        if not data:
            raise ApiError(400, "the medium at this address is empty", code="invalid_media")
        return data

    async def _decoded(self, data: bytes, kind: str, run: Run) -> Tensor:
        """As the encoder takes it."""
        load = partial(run.model.stores[kind].encoder.load, data, f"the {kind}")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoding, load)
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_media") from error


def _modality(part: Part) -> str:
    return "audio" if isinstance(part, InputAudioPart) else part.type.removesuffix("_url")


def _room(decoding: Decoding, prompt: int, run: Run) -> Decoding:
    """With the length of the answer in tokens. Raises `ApiError` if the LM has no positions for it."""
    if decoding.max_length is not None:
        most = max(1, decoding.max_length - prompt)
        decoding = replace(decoding, max_new_tokens=most, max_length=None)
    if run.positions is not None and prompt + decoding.max_new_tokens > run.positions:
        raise ApiError(
            400, f"{prompt} tokens of the question and {decoding.max_new_tokens} of the answer are more than the "
            f"{run.positions} that the model has room for", param="messages", code="context_length_exceeded",
        )  # fmt: skip
    return decoding


def _base64(data: str, most: int, kind: str) -> bytes:
    if len(data) > 4 * (most // 3 + 1):
        raise ApiError(413, f"the {kind} is larger than {most:,} bytes", param="messages", code="media_too_large")
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"the {kind} is not base64", param="messages", code="invalid_media") from None
    if not decoded:
        raise ApiError(400, f"the {kind} is empty", param="messages", code="invalid_media")
    return decoded
