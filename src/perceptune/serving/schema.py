"""Schema of a chat completion request: OpenAI's fields, and vLLM's `audio_url` and `video_url`.

Keys that would change the answer and are not supported are rejected, not ignored.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from perceptune.serving.accepted import Accepted
from perceptune.serving.errors import ApiError
from perceptune.serving.fields import Fields, Only
from perceptune.serving.mistakes import explain

Request = TypeVar("Request", bound=Fields)


class Url(Fields):
    """Location of a medium: `data:TYPE;base64,...`, or a URL that the server allows."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"  # there is one size: the encoder's


class InputAudio(Fields):
    """An audio file in the request itself."""

    data: str = Field(description="base64, or a `data:` address")
    format: str = Field("wav", max_length=16, description="not needed: the file says what it is")


def _as_url(given: Any) -> Any:
    return {"url": given} if isinstance(given, str) else given


Address = Annotated[Url, BeforeValidator(_as_url, json_schema_input_type=Url | str)]


class _Part(Fields):
    """Keys that a part may have beside its own: clients' hints for other servers' caches."""

    uuid: str | None = None
    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class TextPart(_Part):
    type: Literal["text"]
    text: str
    annotations: Annotated[Any, Only(([],))] = None


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: Address
    detail: Literal["auto", "low", "high", "original"] = "auto"


class AudioPart(_Part):
    type: Literal["audio_url"]
    audio_url: Address


class VideoPart(_Part):
    type: Literal["video_url"]
    video_url: Address


class InputAudioPart(_Part):
    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart | InputAudioPart, Field(discriminator="type")]


def _as_parts(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


class Message(Fields):
    """One turn."""

    role: Literal["user", "system", "developer", "assistant", "tool"]
    content: Annotated[list[Part] | None, BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])] = Field(
        None, description="text, or a list of parts"
    )
    # Keys of other servers' messages that clients send back.
    name: str | None = None
    id: str | None = None
    type: Literal["message"] | None = None
    status: str | None = None
    refusal: Annotated[Any, Only(("",))] = None
    annotations: Annotated[Any, Only(([],))] = None
    tool_calls: Annotated[Any, Only(([],))] = None

    @property
    def is_empty(self) -> bool:
        """Whether it has no content."""
        return all(isinstance(part, TextPart) and not part.text.strip() for part in self.content or ())


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class JsonSchema(Fields):
    """A form for the answer; the name and the description are the client's own."""

    name: str = Field(max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(None, description="of no effect: the answer always has this form")


class TextForm(Fields):
    type: Literal["text"]


class AnyJsonForm(Fields):
    type: Literal["json_object"]


class JsonSchemaForm(Fields):
    type: Literal["json_schema"]
    json_schema: JsonSchema


Form = Annotated[TextForm | AnyJsonForm | JsonSchemaForm, Field(discriminator="type")]


class StreamOptions(Fields):
    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Annotated[Any, Only((False,))] = None


class ChatRequest(Accepted):
    """`POST /v1/chat/completions`. Absent keys default to the run's recipe."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="at most the server's --tokens are given")
    max_tokens: int | None = Field(None, ge=1, description="the older name of `max_completion_tokens`")
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token")
    top_p: float | None = Field(None, ge=0, le=1, description="0: the likeliest token")
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1)
    stop: Annotated[list[str] | None, BeforeValidator(_as_list, json_schema_input_type=str | list[str])] = None
    response_format: Form | None = Field(None, description="JSON needs the extra `structured` and no beam search")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20, description="likeliest tokens told with each; needs `logprobs`")
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Values that change nothing for the requested run are accepted, whichever those are; see `request_parser`.
    top_k: int | None = Field(None, ge=-1, description="0, -1, or where nothing is drawn")
    min_p: float | None = Field(None, ge=0, le=1, description="0, or where nothing is drawn")
    min_tokens: int | None = Field(None, ge=0, description="as the run's recipe has it")
    repetition_penalty: float | None = Field(None, gt=0, description="as the run's recipe has it")
    length_penalty: float | None = Field(None, description="as the run's recipe has it, or without beams")

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: list[str] | None) -> list[str] | None:
        if stop is not None and (len(stop) > 4 or not all(0 < len(one) <= 128 for one in stop)):
            raise ValueError("at most four strings of 1 to 128 characters")
        return stop

    @model_validator(mode="after")
    def _needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("needs", "top_logprobs: needs `logprobs: true`")
        return self

    @property
    def is_json(self) -> bool:
        """Whether the answer is to be JSON."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The form of an answer in JSON; None for any object."""
        form = self.response_format
        return form.json_schema.schema_ if isinstance(form, JsonSchemaForm) else None

    @property
    def n_top(self) -> int | None:
        """Number of likeliest tokens to tell with each token; None if no log-probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings before which an answer ends."""
        return tuple(self.stop or ())


PARTS: dict[str, type[BaseModel]] = {
    "text": TextPart, "image_url": ImagePart, "audio_url": AudioPart, "video_url": VideoPart,
    "input_audio": InputAudioPart,
}  # fmt: skip


def parsed(body: bytes) -> ChatRequest:
    """Parse the body of a chat completion request. Raises `ApiError` as `parse_body` does."""
    return parse_body(body, ChatRequest, PARTS, "messages")


def parse_body(body: bytes, request: type[Request], parts: Mapping[str, type[BaseModel]], turns: str) -> Request:
    """Parse a request body. Raises `ApiError` naming the first invalid field and its allowed values.

    `parts` are the kinds of parts of a message by their `type`, `turns` is the key of the messages.
    """
    try:
        return request.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place, message = explain(first, request, parts, turns)
        raise ApiError(400, f"{place or 'body'}: {message}"[:500], param=place or None) from None
