"""Conversion of a request to jobs: media are fetched, checked and decoded within the server's limits."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.generation.generate import TokenConstraint
from perceptune.serving.conversation import Attached, Conversation, read_conversation, require_answerable
from perceptune.serving.errors import ApiError
from perceptune.serving.inline import decode_address, decode_base64
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.media_worker_pool import MediaWorkerPool
from perceptune.serving.remote import Remote
from perceptune.serving.requests import Job
from perceptune.serving.runs import ServedRun
from perceptune.serving.schema import ChatRequest, InputAudioPart
from perceptune.types import Decoding, Medium, Sample

_FETCHERS = 4
_LONGEST_SCHEMA = 8_192  # characters: compiling a long one takes seconds
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

    async def jobs(self, asked: ChatRequest, run: ServedRun, hold: Callable[[int], None]) -> list[Job]:
        """Return a job for each requested answer; `hold` counts the bytes of fetched media. Raises `ApiError`."""
        conversation = self._within_limits(asked)
        decoding = self._decoding_of(asked, run)
        require_answerable(conversation, run)
        prompt = self._prompt(conversation.sample([b""] * len(conversation.attached)), run)
        decoding = _room(decoding, prompt, run)
        media = [await self._bytes(one, hold) for one in conversation.attached]
        decoded: dict[str, dict[Medium, Tensor]] = {}
        for one, data in zip(conversation.attached, media, strict=True):
            known = decoded.setdefault(one.modality, {})
            if data not in known:
                known[data] = await self._decoded(one, data, run)
        sample = conversation.sample(media)
        forms = [await self._form(asked, run) for _ in range(asked.n)]
        return [
            Job(
                run, sample, decoded, replace(decoding, seed=decoding.seed + i), prompt, asked.stops, asked.stream,
                constraint=forms[i], top_logprobs=asked.n_top,
            )
            for i in range(asked.n)
        ]  # fmt: skip

    def _within_limits(self, asked: ChatRequest) -> Conversation:
        """Return the conversation, checked before any medium is read."""
        limits = self._limits
        if len(asked.messages) > limits.messages:
            raise ApiError(400, f"more than {limits.messages} messages", param="messages")
        if any(len(one.content or ()) > limits.parts for one in asked.messages):
            raise ApiError(400, f"more than {limits.parts} parts in a message", param="messages")
        if asked.n > limits.choices:
            raise ApiError(400, f"at most {limits.choices} answers to one question", param="n")
        conversation = read_conversation(asked.messages)
        if conversation.n_characters > limits.text_chars:
            raise ApiError(400, f"the messages have more than {limits.text_chars:,} characters", param="messages")
        if len(conversation.attached) > limits.media:
            raise ApiError(400, f"more than {limits.media} media in the messages", param="messages")
        return conversation

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
        if asked.is_json and not run.takes_json(decoding):
            why = "beam search (`decode.beams`)" if decoding.beams > 1 else "the way this run generates"
            raise ApiError(400, f"response_format: JSON is not possible with {why}", param="response_format")
        return decoding if asked.seed is None else replace(decoding, seed=asked.seed)

    async def _form(self, asked: ChatRequest, run: ServedRun) -> TokenConstraint | None:
        """Return what holds an answer to the request's schema; None for text. Raises `ApiError`."""
        if not asked.is_json:
            return None
        if len(json.dumps(asked.json_schema)) > _LONGEST_SCHEMA:
            raise ApiError(400, f"the schema has more than {_LONGEST_SCHEMA:,} characters", param="response_format")
        try:
            make = partial(run.json_forms.constraint, asked.json_schema)
            return await asyncio.get_running_loop().run_in_executor(self._decoding, make)
        except UserError as error:
            raise ApiError(400, str(error), param="response_format") from error

    def _prompt(self, sample: Sample, run: ServedRun) -> int:
        """Return the number of the prompt's tokens. Raises `ApiError` for a question that does not fit the LM."""
        try:
            return run.text.count_prompt_tokens(sample)
        except UserError as error:
            raise ApiError(400, str(error).removeprefix("sample `question`: "), param="messages") from error

    async def _bytes(self, one: Attached, hold: Callable[[int], None]) -> bytes:
        """Return the content of a medium."""
        with _naming(one):
            if isinstance(one.part, InputAudioPart):
                data, most = one.part.input_audio.data, self._limits.bytes_of("audio")
                read = decode_address if data[:16].lstrip().lower().startswith("data:") else decode_base64
                return read(data, most, "audio")
            return await self._located(getattr(one.part, one.part.type).url.strip(), one.modality, hold)

    async def _located(self, url: str, kind: str, hold: Callable[[int], None]) -> bytes:
        """Return the content of a medium at an address."""
        most = self._limits.bytes_of(kind)
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return decode_address(url, most, kind)
        if scheme == "file" and self._local is not None:
            return await self._in_thread(partial(self._local.read, url, most), hold)
        if scheme in ("http", "https") and self._remote is not None:
            return await self._in_thread(partial(self._remote.fetch, url, most, self._limits.fetch_seconds(kind)), hold)
        what = {"file": "local files are", "http": "remote media are", "https": "remote media are"}.get(scheme)
        why = f"{what} not allowed here" if what else "an address begins with data:, http:, https: or file:"
        raise ApiError(400, f"the {kind}: {why}; send it as data:TYPE;base64,DATA", param="messages")

    async def _in_thread(self, read: partial[bytes], hold: Callable[[int], None]) -> bytes:
        data = await asyncio.get_running_loop().run_in_executor(self._fetching, read)
        if not data:
            raise ApiError(400, "the medium at this address is empty", code="invalid_media")
        hold(len(data))
        return data

    async def _decoded(self, one: Attached, data: bytes, run: ServedRun) -> Tensor:
        """Return the encoder's input."""
        with _naming(one):
            plain = await self._decoders.check(data, one.modality)
            load = partial(run.model.stores[one.modality].encoder.load, plain, f"the {one.modality}")
            try:
                return await asyncio.get_running_loop().run_in_executor(self._decoding, load)
            except UserError as error:
                raise ApiError(400, str(error), code="invalid_media") from error


@contextmanager
def _naming(one: Attached) -> Iterator[None]:
    """Name the medium in errors, if there are several."""
    try:
        yield
    except ApiError as error:
        alone = f"the {one.modality}"
        if one.name != alone and error.status != 429:
            begun = error.message.startswith(alone)
            error.message = one.name + (error.message.removeprefix(alone) if begun else f": {error.message}")
        raise


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
