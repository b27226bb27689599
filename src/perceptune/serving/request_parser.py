"""Conversion of a request to jobs: media are fetched, checked and decoded within the server's limits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from torch import Tensor

from perceptune.errors import UserError, nearest
from perceptune.serving.errors import ApiError
from perceptune.serving.inline import decode_address, decode_base64
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.media_worker_pool import MediaWorkerPool
from perceptune.serving.remote import Remote
from perceptune.serving.requests import Job
from perceptune.serving.runs import ServedRun
from perceptune.serving.schema import ChatRequest, InputAudioPart, Part, TextPart
from perceptune.types import Decoding, Medium, Sample

_FETCHERS = 4
_COLD = 1e-6  # temperatures below are treated as 0; logits divided by a much smaller one are infinite


class RequestParser:
    """Parser of requests. `local` and `remote` are None if such media are not allowed."""

    def __init__(
        self, limits: Limits, decoders: MediaWorkerPool, local: LocalFiles | None, remote: Remote | None, threads: int
    ) -> None:
        self._limits, self._decoders, self._local, self._remote = limits, decoders, local, remote
        self._fetching = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="perceptune-fetch")
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="perceptune-decode")

    def close(self) -> None:
        """Stop its threads."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)

    async def jobs(self, asked: ChatRequest, run: ServedRun) -> list[Job]:
        """Return a job for each requested answer. Raises `ApiError`."""
        text, parts = self._within_limits(asked)
        decoding = self._decoding_of(asked, run)
        kinds = [_modality(part) for part in parts]
        for place, kind in enumerate(kinds):
            if kind not in run.model.stores:
                known = nearest(kind, run.model.stores)
                raise ApiError(400, f"model `{run.name}` takes no {kind}{known}", param="messages", code="no_encoder")
            if kind in kinds[:place]:
                raise ApiError(400, f"more than one {kind}: this model takes one", param="messages")
        if run.model.required_modalities - set(kinds):
            raise ApiError(400, f"model `{run.name}` speaks about images only: send one", param="messages")
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
        """Return the question, checked before any medium is read."""
        limits = self._limits
        if any(len(one.content or ()) > limits.parts for one in asked.messages):
            raise ApiError(400, f"more than {limits.parts} parts in a message", param="messages")
        if asked.n > limits.choices:
            raise ApiError(400, f"at most {limits.choices} answers to one question", param="n")
        text, parts = asked.question
        if len(text) > limits.text_chars:
            raise ApiError(400, f"the question has more than {limits.text_chars:,} characters", param="messages")
        return text, parts

    def _decoding_of(self, asked: ChatRequest, run: ServedRun) -> Decoding:
        """Return the run's decoding with the request's changes."""
        decoding = run.model.decoding
        wanted = asked.max_completion_tokens or asked.max_tokens
        if wanted is not None:  # clients' own defaults often exceed the limit: their answers end with `length`
            decoding = replace(decoding, max_new_tokens=min(wanted, self._limits.tokens), max_length=None)
        if asked.temperature is not None and asked.temperature >= _COLD:
            decoding = replace(decoding, sample=True, beams=1, temperature=asked.temperature)
        if asked.top_p is not None:
            decoding = replace(decoding, top_p=asked.top_p)
        cold = asked.temperature is not None and asked.temperature < _COLD
        if cold or (decoding.sample and (asked.top_p == 0 or asked.top_k == 1)):
            decoding = replace(decoding, sample=False, temperature=1.0, top_p=1.0)
        _require_no_change(asked, decoding)
        return decoding if asked.seed is None else replace(decoding, seed=asked.seed)

    def _prompt(self, sample: Sample, run: ServedRun) -> int:
        """Return the number of the prompt's tokens. Raises `ApiError` for a question that does not fit the LM."""
        try:
            return run.text.count_prompt_tokens(sample)
        except UserError as error:
            raise ApiError(400, str(error).removeprefix("sample `question`: "), param="messages") from error

    async def _bytes(self, part: Part, kind: str) -> bytes:
        most = self._limits.bytes_of(kind)
        if isinstance(part, InputAudioPart):
            data = part.input_audio.data
            read = decode_address if data[:16].lstrip().lower().startswith("data:") else decode_base64
            return read(data, most, kind)
        assert not isinstance(part, TextPart)
        url = getattr(part, part.type).url.strip()
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return decode_address(url, most, kind)
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

    async def _decoded(self, data: bytes, kind: str, run: ServedRun) -> Tensor:
        """Return the encoder's input."""
        load = partial(run.model.stores[kind].encoder.load, data, f"the {kind}")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoding, load)
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_media") from error


def _modality(part: Part) -> str:
    return "audio" if isinstance(part, InputAudioPart) else part.type.removesuffix("_url")


def _require_no_change(asked: ChatRequest, decoding: Decoding) -> None:
    """Raise `ApiError` for an unsupported key that would change an answer decoded like this."""
    drawn, searched = decoding.sample, decoding.beams > 1
    lacking = [
        ("top_k", asked.top_k in (None, 0, -1) or not drawn, "0, -1, or a `temperature` of 0"),
        ("min_p", not asked.min_p or not drawn, "0, or a `temperature` of 0"),
        ("min_tokens", (asked.min_tokens or 0) <= decoding.min_new_tokens, f"{decoding.min_new_tokens}"),
        ("repetition_penalty", asked.repetition_penalty in (None, decoding.repetition_penalty),
         f"{decoding.repetition_penalty:g}"),
        ("length_penalty", asked.length_penalty in (None, decoding.length_penalty) or not searched,
         f"{decoding.length_penalty:g}"),
    ]  # fmt: skip
    for key, fits, allowed in lacking:
        if not fits:
            given = getattr(asked, key)
            raise ApiError(400, f"{key}: {given:g} is not possible here; allowed is {allowed}", param=key)


def _room(decoding: Decoding, prompt: int, run: ServedRun) -> Decoding:
    """Limit the answer to the LM's remaining positions. Raises `ApiError` if there are none."""
    if decoding.max_length is not None:
        most = max(1, decoding.max_length - prompt)
        decoding = replace(decoding, max_new_tokens=most, max_length=None)
    positions = run.model.max_positions
    if positions is None:
        return decoding
    if prompt >= positions:
        raise ApiError(
            400, f"{prompt} tokens of the question leave none of the {positions} that the model has room for",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip
    return replace(decoding, max_new_tokens=min(decoding.max_new_tokens, positions - prompt))
