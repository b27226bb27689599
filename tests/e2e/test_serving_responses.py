"""OpenAI's Responses API: the answers of chat completions in its own form, with its own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import perceptune
import runs as dwarf_runs
import support
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from servers import Served, data_url, load_runs, part, png, served, sound_part, text_part, turn
from sounds import encoded, tone


@pytest.fixture(scope="module")
def server(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run that sees and hears, and one that takes conversations."""
    folder = tmp_path_factory.mktemp("answering")
    encoders = {name: {"id": str(dwarfs / "encoder")} for name in ("image", "audio")}
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(folder / "one", perceptune.build(dwarf_runs.recipe(dwarfs, encoders=encoders, method=method)))
    support.save_chat_lm(folder / "lm")
    talking = support.recipe(folder / "lm", dwarfs / "encoder", method=method, text={"template": "chat"})
    save_run(folder / "chat", perceptune.build(talking))
    with served(load_runs([f"one={folder / 'one'}", f"chat={folder / 'chat'}"], Limits())) as running:
        yield running


def seen(text: str = "color?", color: str = "red", **more: Any) -> dict[str, Any]:
    picture = {"type": "input_image", "image_url": data_url(png(color)), **more}
    return {"role": "user", "content": [{"type": "input_text", "text": text}, picture]}


def test_the_client_gets_the_answer_of_chat_completions(server: Served) -> None:
    reply = server.client().responses.create(model="one", input=[seen()], max_output_tokens=4)
    _, chat = server.chat(max_tokens=4)
    assert reply.output_text == chat["choices"][0]["message"]["content"]
    assert reply.output_text
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert reply.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert reply.usage.output_tokens == chat["usage"]["completion_tokens"] == 4
    assert reply.id.startswith("resp_")


def test_a_text_alone_and_a_sound(server: Served) -> None:
    alone = server.client().responses.create(model="one", input="color?")
    [choice] = server.chat(model="one", messages=[turn("user", "color?")])[1]["choices"]
    assert alone.output_text == choice["message"]["content"]
    heard = {"role": "user", "content": [{"type": "input_text", "text": "sound?"}, sound_part(encoded(tone()))]}
    reply = server.client().responses.create(model="one", input=[heard])  # type: ignore[list-item]
    [choice] = server.chat(messages=[turn("user", "sound?", sound_part(encoded(tone())))])[1]["choices"]
    assert reply.output_text == choice["message"]["content"]


def test_an_earlier_answer_can_be_sent_back_as_it_came(server: Served) -> None:
    client = server.client()
    first = client.responses.create(model="chat", input=[seen()], instructions="Be brief.")
    history = [seen(), *(item.model_dump() for item in first.output), {"role": "user", "content": "and why?"}]
    second = client.responses.create(model="chat", input=history, instructions="Be brief.")  # type: ignore[arg-type]
    messages = [
        turn("system", "Be brief."), turn("user", text_part("color?"), part(data_url(png()))),
        turn("assistant", first.output_text), turn("user", "and why?"),
    ]  # fmt: skip
    [choice] = server.chat(model="chat", messages=messages)[1]["choices"]
    assert second.output_text == choice["message"]["content"]


def test_streamed_events_make_up_the_answer(server: Served) -> None:
    client = server.client()
    whole = client.responses.create(model="one", input=[seen()])
    events = list(client.responses.create(model="one", input=[seen()], stream=True))
    assert events[-1].response.output_text == whole.output_text  # type: ignore[union-attr]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        f"response.{whole.status}",
    ]  # fmt: skip


def test_log_probabilities_are_those_of_chat_completions(server: Served) -> None:
    reply = server.client().responses.create(
        model="one", input=[seen()], top_logprobs=2, include=["message.output_text.logprobs"]
    )
    [item] = reply.output
    found = [(one.token, one.logprob) for one in item.content[0].logprobs]  # type: ignore[union-attr]
    content = server.chat(logprobs=True, top_logprobs=2)[1]["choices"][0]["logprobs"]["content"]
    assert found == [(one["token"], one["logprob"]) for one in content]


@pytest.mark.parametrize(
    ("given", "place", "said"),
    [
        ({"input": [{"role": "user", "content": [{"type": "text_input", "text": "a"}]}]}, "input.0.content.0",
         "no part has the type `text_input`; allowed are input_text, input_image, input_audio"),
        ({"input": [seen(detail="much")]}, "input.0.content.1.detail", "should be 'auto'"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "not possible here"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools", "allowed is []"),
        ({"input": "a", "max_tokens": 3}, "max_tokens", "did you mean `max_output_tokens`"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.name", "is missing"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "scheme": 1}}},
         "text.format.scheme", "allowed are name, schema"),
        ({"input": "a", "text": {"format": {"type": "yaml"}}}, "text.format", "no form has the type `yaml`"),
        ({"input": "a", "model": "two"}, "model", "there is no model `two`"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_names_its_key(given: dict[str, Any], place: str, said: str, server: Served) -> None:
    status, reply = server.request("POST", "/v1/responses", {"model": "one", **given})
    assert status in (400, 404)
    assert reply["error"]["param"] == place
    assert said in reply["error"]["message"]


def test_a_broken_picture_is_an_error_of_the_client(server: Served) -> None:
    broken = seen()
    broken["content"][1]["image_url"] = data_url(b"not a picture")
    with pytest.raises(openai.BadRequestError, match="the image"):
        server.client().responses.create(model="one", input=[broken])  # type: ignore[list-item]
