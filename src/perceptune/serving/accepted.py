"""Keys of OpenAI's and of other servers' requests that change nothing here, with the values for which that is so.

With any other value each of them would change the answer in a way that cannot be done, so it is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from perceptune.serving.fields import Fields, Only


class ResponseFormat(Fields):
    """The form of an answer: answers are text."""

    type: Literal["text"]


_NO_TOOLS = Only(("none", "auto"))  # there are none to choose from
_NONE, _EMPTY, _NO, _ZERO, _ONE = Only(([],)), Only(({},)), Only((False,)), Only((0,)), Only((1,))


class Accepted(Fields):
    """What a request may hold beside the keys that are heeded."""

    # Of OpenAI's API.
    response_format: ResponseFormat | None = None
    frequency_penalty: Annotated[Any, _ZERO] = None
    presence_penalty: Annotated[Any, _ZERO] = None
    logit_bias: Annotated[Any, _EMPTY] = None
    logprobs: Annotated[Any, _NO] = None
    top_logprobs: Annotated[Any, _ZERO] = None
    tools: Annotated[Any, _NONE] = None
    tool_choice: Annotated[Any, _NO_TOOLS] = None
    functions: Annotated[Any, _NONE] = None
    function_call: Annotated[Any, _NO_TOOLS] = None
    modalities: Annotated[Any, Only((["text"],))] = None
    reasoning_effort: Annotated[Any, Only(("none",))] = None
    verbosity: Annotated[Any, Only(("medium",))] = None
    parallel_tool_calls: bool | None = Field(None, description="of no effect: there are no tools")
    user: str | None = Field(None, description="of no effect, as are those that follow")
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None  # makes the same answer come sooner, at best
    # Of vLLM, SGLang, llama.cpp, and transformers' `generate`.
    typical_p: Annotated[Any, _ONE] = None
    repeat_penalty: Annotated[Any, _ONE] = None
    no_repeat_ngram_size: Annotated[Any, _ZERO] = None
    mirostat: Annotated[Any, _ZERO] = None
    best_of: Annotated[Any, _ONE] = None
    use_beam_search: Annotated[Any, _NO] = None
    ignore_eos: Annotated[Any, _NO] = None
    stop_token_ids: Annotated[Any, _NONE] = None
    bad_words: Annotated[Any, _NONE] = None
    include_stop_str_in_output: Annotated[Any, _NO] = None
    skip_special_tokens: Annotated[Any, Only((True,))] = None
    spaces_between_special_tokens: bool | None = None  # they are left out
    echo: Annotated[Any, _NO] = None
    add_generation_prompt: Annotated[Any, Only((True,))] = None
    continue_final_message: Annotated[Any, _NO] = None
    add_special_tokens: Annotated[Any, _NO] = None
    documents: Annotated[Any, _NONE] = None
    chat_template_kwargs: Annotated[Any, Only(({}, {"enable_thinking": False}))] = None
    mm_processor_kwargs: Annotated[Any, _EMPTY] = None
    vllm_xargs: Annotated[Any, _EMPTY] = None
    return_token_ids: Annotated[Any, _NO] = None
    return_tokens_as_token_ids: Annotated[Any, _NO] = None
    thinking: Annotated[Any, Only(({"type": "disabled"},))] = None
    include_reasoning: bool | None = None  # there is none
    separate_reasoning: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    cache_prompt: bool | None = None
