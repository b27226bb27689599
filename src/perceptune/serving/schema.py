"""What a chat completion may ask for: OpenAI's fields, and vLLM's `audio_url` and `video_url`.

What would change the answer and cannot be done is refused, not passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from perceptune.serving.errors import ApiError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Url(_Part):
    """Where a medium is: `data:TYPE;base64,...`, or an address that the server allows."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # there is one size: the encoder's


class Sound(_Part):
    """A sound in the request itself."""

    data: str = Field(description="base64, without `data:` in front")
    format: str = Field("wav", max_length=16, description="not needed: the file says what it is")


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: Url
    uuid: str | None = None


class AudioPart(_Part):
    type: Literal["audio_url"]
    audio_url: Url
    uuid: str | None = None


class VideoPart(_Part):
    type: Literal["video_url"]
    video_url: Url
    uuid: str | None = None


class InputAudioPart(_Part):
    type: Literal["input_audio"]
    input_audio: Sound
    uuid: str | None = None


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart | InputAudioPart, Field(discriminator="type")]


class Message(_Part):
    """One turn."""

    role: Literal["user", "system", "developer", "assistant", "tool"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Part):
    type: Literal["text"]


class ChatRequest(_Part):
    """`POST /v1/chat/completions`. What is not given is as the run's recipe says."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Taken where they ask for what is done anyway.
    response_format: ResponseFormat | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Annotated[bool, Field(json_schema_extra={"const": False})] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    # Of no effect on an answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> list[str] | None:
        given = [stop] if isinstance(stop, str) else stop
        if given is not None and (len(given) > 4 or not all(0 < len(one) <= 128 for one in given)):
            raise ValueError("at most four strings of 1 to 128 characters")
        return given

    @field_validator("logprobs")
    @classmethod
    def _none_of_them(cls, logprobs: bool | None) -> bool | None:
        if logprobs:  # not `Literal[False]`, which takes a 0
            raise ValueError("log-probabilities are not given")
        return logprobs

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings before which an answer ends."""
        return tuple(self.stop or ())

    @property
    def question(self) -> tuple[str, list[Part]]:
        """Text and media of the one turn. Raises `ApiError` for a conversation: runs know single questions only."""
        if len(self.messages) != 1 or self.messages[0].role != "user":
            raise ApiError(
                400, "exactly one message, of role `user`: this model answers single questions, without a system "
                "message or earlier turns", param="messages", code="unsupported_conversation",
            )  # fmt: skip
        content = self.messages[0].content
        parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
        return text, [part for part in parts if not isinstance(part, TextPart)]


def parsed(body: bytes) -> ChatRequest:
    """The request in a body. Raises `ApiError` naming the first field that is wrong."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ApiError(400, f"{place or 'body'}: {first['msg']}"[:500], param=place or None) from None
