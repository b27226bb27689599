"""Schema of `POST /v1/responses`: OpenAI's Responses API, as far as one model without tools or memory can answer it."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from perceptune.serving.fields import Fields, Only
from perceptune.serving.schema import (
    AnyJsonForm,
    ChatRequest,
    Form,
    ImagePart,
    InputAudio,
    InputAudioPart,
    JsonSchema,
    JsonSchemaForm,
    Message,
    Part,
    TextForm,
    TextPart,
    Url,
    parse_body,
)


class InputText(Fields):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[Any, Only(([],))] = None
    logprobs: Annotated[Any, Only(([],))] = None


class InputImage(Fields):
    type: Literal["input_image"]
    image_url: str = Field(description="`data:TYPE;base64,...`, or a URL that the server allows")
    detail: Literal["auto", "low", "high", "original"] = "auto"
    file_id: Annotated[Any, Only(())] = None


class InputSound(Fields):
    type: Literal["input_audio"]
    input_audio: InputAudio


InputPart = Annotated[InputText | InputImage | InputSound, Field(discriminator="type")]


def _as_parts(given: Any) -> Any:
    return [{"type": "input_text", "text": given}] if isinstance(given, str) else given


class InputMessage(Fields):
    """One turn."""

    role: Literal["user", "system", "developer", "assistant"]
    content: Annotated[list[InputPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[InputPart])]
    # Keys of an earlier answer's output that clients send back.
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None


def _as_messages(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class FlatSchemaForm(JsonSchema):
    """A form for the answer, whose keys stand beside its type here."""

    type: Literal["json_schema"]


class TextOptions(Fields):
    format: Annotated[TextForm | AnyJsonForm | FlatSchemaForm, Field(discriminator="type")] | None = None
    verbosity: Annotated[Any, Only(("medium",))] = None


class ResponseRequest(Fields):
    """`POST /v1/responses`. Absent keys default to the run's recipe."""

    model: str
    input: Annotated[
        list[InputMessage], BeforeValidator(_as_messages, json_schema_input_type=str | list[InputMessage])
    ] = Field(min_length=1)
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: int | None = Field(None, ge=1, description="at most the server's --tokens are given")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20, description="needs `include: [message.output_text.logprobs]`")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    stream: bool = False
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    # Accepted with what is done anyway: nothing is stored, and there are no tools.
    store: bool | None = Field(None, description="of no effect: nothing is stored")
    previous_response_id: Annotated[Any, Only(())] = Field(None, description="send the earlier turns as `input`")
    conversation: Annotated[Any, Only(())] = None
    background: Annotated[Any, Only((False,))] = None
    tools: Annotated[Any, Only(([],))] = None
    tool_choice: Annotated[Any, Only(("none", "auto"))] = None
    parallel_tool_calls: bool | None = None
    reasoning: Annotated[Any, Only(({}, {"effort": "none"}))] = None
    truncation: Annotated[Any, Only(("disabled",))] = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities of the answer's tokens are wanted."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)

    def _form(self) -> Form | None:
        form = None if self.text is None else self.text.format
        if not isinstance(form, FlatSchemaForm):
            return form
        return JsonSchemaForm(type="json_schema", json_schema=JsonSchema(name=form.name, schema=form.schema_))

    def to_chat(self) -> ChatRequest:
        """Return the same question as a chat completion request."""
        instructed = [Message(role="system", content=_text(self.instructions))] if self.instructions else []
        turns = [Message(role=one.role, content=[*_parts(one.content)]) for one in self.input]
        self.input.clear()  # the parts hold the media now
        asked = {
            "model": self.model, "messages": [*instructed, *turns], "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature, "top_p": self.top_p, "stream": self.stream,
            "logprobs": self.has_logprobs, "top_logprobs": self.top_logprobs, "response_format": self._form(),
        }  # fmt: skip
        return ChatRequest.model_validate(asked)


def _text(text: str) -> list[Part]:
    return [TextPart(type="text", text=text)]


def _parts(content: Iterable[InputText | InputImage | InputSound]) -> Iterable[Part]:
    for part in content:
        if isinstance(part, InputText):
            yield TextPart(type="text", text=part.text)
        elif isinstance(part, InputImage):
            yield ImagePart(type="image_url", image_url=Url(url=part.image_url))
        else:
            yield InputAudioPart(type="input_audio", input_audio=part.input_audio)


PARTS: dict[str, type[BaseModel]] = {
    "input_text": InputText, "input_image": InputImage, "input_audio": InputSound, "output_text": InputText,
}  # fmt: skip


def parsed_response(body: bytes) -> ResponseRequest:
    """Parse the body of a request for a response. Raises `ApiError` as `parse_body` does."""
    return parse_body(body, ResponseRequest, PARTS, "input")
