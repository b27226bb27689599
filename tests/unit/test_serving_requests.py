"""Bodies of requests: which part and key a refusal names, what null is, what changes nothing, how base64 may look."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from perceptune.serving.accepted import Accepted
from perceptune.serving.conversation import read_conversation
from perceptune.serving.errors import ApiError
from perceptune.serving.inline import decode_address, decode_base64
from perceptune.serving.limits import Limits
from perceptune.serving.openapi import complete_openapi
from perceptune.serving.request_parser import RequestParser, _room
from perceptune.serving.schema import PARTS, ChatRequest, parsed
from perceptune.types import Decoding

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def request(content: Any = "a", message: dict[str, Any] | None = None, **more: Any) -> ChatRequest:
    turn = {"role": "user", "content": content, **(message or {})}
    return parsed(json.dumps({"model": "x", "messages": [turn], **more}).encode())


def refusal(*given: Any, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        request(*given, **more)
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value


def decoding_for(run: Decoding, limits: Limits | None = None, **more: Any) -> Decoding:
    nothing: Any = None
    one: Any = SimpleNamespace(model=SimpleNamespace(decoding=run))
    return RequestParser(limits or Limits(), nothing, None, None, 1)._decoding_of(request(**more), one)


@pytest.mark.parametrize(
    ("part", "place", "said"),
    [
        ({"type": "input_image", "image_url": "x"}, "", "`input_image`; allowed are text, image_url, audio_url"),
        ({"image_url": "x"}, "", "a part has a `type`"),
        ("text", "", "a part is an object"),
        ({"type": "text"}, ".text", "is missing"),
        ({"type": "text", "text": None}, ".text", "is missing"),
        ({"type": "text", "text": 4}, ".text", "valid string"),
        ({"type": "text", "text": "a", "texts": 1}, ".texts", "allowed are uuid"),
        ({"type": "image_url"}, ".image_url", "an address, or an object with `url`"),
        ({"type": "image_url", "image_url": 5}, ".image_url", "neither an address nor an object with `url`"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, ".image_url.url", "is missing"),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "much"}}, ".image_url.detail", "'auto', 'low'"),
        ({"type": "video_url", "video_url": {"url": "x", "fps": 2}}, ".video_url.fps", "allowed are url, detail"),
        ({"type": "input_audio", "input_audio": "AAAA"}, ".input_audio", "no object with `data` and `format`"),
        ({"type": "input_audio", "input_audio": {"data": 1}}, ".input_audio.data", "valid string"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_part_names_the_part_and_its_key(part: Any, place: str, said: str) -> None:
    error = refusal([{"type": "text", "text": "color?"}, part])
    assert error.param == f"messages.0.content.1{place}"
    assert said in error.message


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"content": {}}, "messages.0.content", "neither a text nor a list of parts"),
        ({"content": 5}, "messages.0.content", "neither a text nor a list of parts"),
        ({"message": {"role": "bot"}}, "messages.0.role", "'user', 'system'"),
        ({"message": {"rol": "user"}}, "messages.0.rol", "allowed are role, content"),
        ({"message": {"tool_calls": [{}]}}, "messages.0.tool_calls", "allowed is []"),
        ({"max_tokenss": 4}, "max_tokenss", "did you mean `max_tokens`?"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "0.1 is not possible here; allowed is 0"),
        ({"echo": 0}, "echo", "allowed is false"),
        ({"tool_choice": "required"}, "tool_choice", 'allowed is "none" or "auto"'),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "allowed are include_usage"),
        ({"response_format": {"type": "yaml"}}, "response_format", "allowed are text, json_object, json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
         "response_format.json_schema.schema", "is not an object"),
        ({"stop": 5}, "stop", "neither a text nor a list of texts"),
        ({"logit_bias": {"5": 100}}, "logit_bias", "allowed is {}"),
    ],
)  # fmt: skip
def test_other_mistakes_say_what_is_allowed(given: dict[str, Any], param: str, said: str) -> None:
    error = refusal(**given)
    assert (error.param, said in error.message) == (param, True), error.message


@pytest.mark.parametrize("kind", [kind for kind in PARTS if kind.endswith("_url")])
def test_an_address_may_stand_as_it_is(kind: str) -> None:
    for address in ("data:x", {"url": "data:x"}, {"url": "data:x", "detail": None}):
        [part] = request([{"type": kind, kind: address, "uuid": None}]).messages[0].content or ()
        assert getattr(part, kind).url == "data:x"


def test_null_is_as_if_the_key_were_not_there() -> None:
    """Of every key there is, and of some there are not."""
    keys = {*ChatRequest.model_fields, "top_a", "guided_json"} - {"model", "messages"}
    message = dict.fromkeys(("name", "refusal", "audio", "tool_calls", "function_call", "reasoning_content"))
    given = request([{**PICTURE, "uuid": None, "fps": None}], message, **dict.fromkeys(keys))
    assert given == request([PICTURE])
    assert given.n == 1
    assert refusal(None, {"content": 5}).param == "messages.0.content"
    with pytest.raises(ApiError, match=r"messages\.0\.content: is missing"):
        read_conversation(request(None).messages)


def test_values_that_change_nothing_are_accepted() -> None:
    neutral = {
        "top_logprobs": 0, "tool_choice": "none", "parallel_tool_calls": False, "repetition_penalty": 1.0, "top_k": 50,
        "min_p": 0.05, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "stop_token_ids": [], "min_tokens": 0,
        "length_penalty": 1.0, "best_of": 1, "chat_template_kwargs": {"enable_thinking": False}, "echo": False,
        "prompt_cache_key": "a", "modalities": ["text"], "response_format": {"type": "text"}, "typical_p": 1.0,
    }  # fmt: skip
    run = Decoding(12)
    assert decoding_for(run, message={"type": "message", "id": "m1", "status": "completed"}, **neutral) == run


def test_the_description_names_every_type_of_error() -> None:
    described = FastAPI()
    complete_openapi(described)
    error = described.openapi()["components"]["schemas"]["Error"]["properties"]["error"]["properties"]
    assert set(error["type"]["enum"]) == {ApiError(status, "").body()["error"]["type"] for status in range(400, 504)}
    assert set(error) == set(ApiError(400, "").body()["error"])


def test_every_accepted_key_is_optional() -> None:
    assert not any(field.is_required() for field in Accepted.model_fields.values())


@pytest.mark.parametrize(
    ("run", "more", "key"),
    [
        (Decoding(sample=True), {"top_k": 50}, "top_k"), (Decoding(), {"top_k": 50, "temperature": 0.5}, "top_k"),
        (Decoding(), {"min_p": 0.1, "temperature": 1}, "min_p"), (Decoding(), {"min_tokens": 2}, "min_tokens"),
        (Decoding(), {"repetition_penalty": 1.2}, "repetition_penalty"),
        (Decoding(repetition_penalty=1.2), {"repetition_penalty": 1.0}, "repetition_penalty"),
        (Decoding(beams=3), {"length_penalty": 2.0}, "length_penalty"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(run: Decoding, more: dict[str, Any], key: str) -> None:
    with pytest.raises(ApiError, match=f"^{key}: .* is not possible here; allowed is ") as caught:
        decoding_for(run, **more)
    assert (caught.value.status, caught.value.param) == (400, key)


@pytest.mark.parametrize(
    "more",
    [{"repetition_penalty": 1.2}, {"top_k": -1}, {"top_k": 0, "min_p": 0}, {"min_tokens": 1}, {"length_penalty": 3}],
)
def test_the_run_s_own_values_are_accepted(more: dict[str, Any]) -> None:
    run = Decoding(sample=True, temperature=0.7, repetition_penalty=1.2, min_new_tokens=2)
    assert decoding_for(run, **more) == run


@pytest.mark.parametrize("more", [{"top_k": 1}, {"top_p": 0}, {"temperature": 0}])
def test_the_likeliest_token_alone_is_no_draw(more: dict[str, Any]) -> None:
    assert decoding_for(Decoding(4, sample=True, temperature=0.7, top_p=0.9), **more) == Decoding(4)
    assert decoding_for(Decoding(4, beams=3), **more).beams == 3


def test_more_tokens_than_there_may_be_are_cut_to_what_may_be() -> None:
    for key in ("max_tokens", "max_completion_tokens"):
        assert decoding_for(Decoding(), Limits(tokens=100), **{key: 4096}).max_new_tokens == 100
        assert decoding_for(Decoding(), Limits(tokens=100), **{key: 7}).max_new_tokens == 7
    room: Any = SimpleNamespace(model=SimpleNamespace(max_positions=128))
    assert _room(Decoding(120), 24, room).max_new_tokens == 104
    assert _room(Decoding(20, max_length=200), 24, room).max_new_tokens == 104
    with pytest.raises(ApiError, match="leave none of the 128"):
        _room(Decoding(1), 128, room)


DATA = bytes(range(256)) * 3 + b"\xfb\xff\xfe"
TEXT = base64.b64encode(DATA + b"x").decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT, f"{TEXT}\n", base64.encodebytes(DATA + b"x").decode(), f" {TEXT[:9]}\r\n\t{TEXT[9:]}", TEXT.rstrip("="),
        base64.urlsafe_b64encode(DATA + b"x").decode(), f"{TEXT}=",
    ],
    ids=["plain", "newline", "lines", "blanks", "unpadded", "url-safe", "padded too much"],
)  # fmt: skip
def test_base64_as_other_decoders_take_it(text: str) -> None:
    assert decode_base64(text, 1000, "image") == DATA + b"x"
    for prefix in ("data:image/png;base64,", "DATA:;BASE64,", "data:image/png;charset=utf-8;base64,\n"):
        assert decode_address(prefix + text, 1000, "image") == DATA + b"x"
    with pytest.raises(ApiError) as caught:
        decode_base64(text, len(DATA) - 3, "image")
    assert caught.value.status == 413


@pytest.mark.parametrize("text", ["@@@@", TEXT[:41], "AA=A", "ÄÄÄÄ", "A"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="is not base64"):
        decode_base64(text, 1000, "image")


@pytest.mark.parametrize("text", ["", " \n", "===="])
def test_nothing_is_no_medium(text: str) -> None:
    with pytest.raises(ApiError, match="is empty"):
        decode_base64(text, 1000, "image")


ASKS = b'{"model": "x", "messages": [{"role": "user", "content": "a"}], '
EMBEDS = b'{"model": "x", "messages": [{"role": "user", "content": [{"type": "prompt_embeds"}]}]}'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None), (b"[]", None), (b"{", None), (b'{"model": "x"}', "messages"), (b"[" * 100_000, None),
        (b'{"model": 1, "messages": []}', "model"), (b'{"model": "\xff", "messages": []}', None),
        (b'{"model": "x", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (EMBEDS, "messages.0.content"),
        (ASKS + b'"temperature": NaN}', None),
        (ASKS + b'"mm_processor_kwargs": {"a": 1}}', "mm_processor_kwargs"),
        (ASKS + b'"tools": [{}]}', "tools"),
        (ASKS + b'"max_tokens": 1e300}', "max_tokens"),
        (ASKS + b'"n": 0}', "n"),
        (ASKS + b'"echo": true}', "echo"),
        (ASKS + b'"logprobs": 0}', "logprobs"),
        (ASKS + b'"stop": ["", "a"]}', "stop"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(body)
    assert caught.value.status == 400
    assert param is None or (caught.value.param or "").startswith(param)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"'])
def test_a_body_that_is_no_object_names_what_it_must_have(body: bytes) -> None:
    with pytest.raises(ApiError, match="is no object with `model` and `messages`"):
        parsed(body)


@pytest.mark.parametrize("temperature", ["0", "1e-40"])
def test_a_temperature_of_next_to_nothing_takes_the_likeliest(temperature: str) -> None:
    """Logits divided by it are infinite: a drawn row would make its group fail."""
    asked = parsed(ASKS + f'"top_p": 0.5, "temperature": {temperature}}}'.encode())
    run: Any = SimpleNamespace(model=SimpleNamespace(decoding=Decoding(4, sample=True, temperature=0.7)))
    nobody: Any = None
    assert RequestParser(Limits(), nobody, None, None, 1)._decoding_of(asked, run) == Decoding(4)
