"""Served answers in a given form: JSON by a schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from perceptune.lm.generation.generate import ContinuousBatch
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from servers import Served, asked, load_runs, served

pytest.importorskip("xgrammar", reason="xgrammar is not installed")
COLOR = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
         "required": ["color", "sure"]}  # fmt: skip


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema, "strict": True}}


@pytest.fixture(scope="module")
def server(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run whose LM has tokens for JSON, and one with beams."""
    folder = tmp_path_factory.mktemp("forms")
    lm = support.save_json_lm(folder / "lm")
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    for name, beams in (("one", 1), ("beams", 2)):
        given = support.recipe(lm, dwarfs / "encoder", method=method, decode={"max_new_tokens": 60, "beams": beams})
        save_run(folder / name, perceptune.build(given))
    names = [f"{name}={folder / name}" for name in ("one", "beams")]
    with served(load_runs(names, Limits())) as running:
        yield running


def test_an_answer_fits_its_schema(server: Served) -> None:
    [choice] = server.chat(response_format=form(COLOR))[1]["choices"]
    found = json.loads(choice["message"]["content"])
    assert found["color"] in ("red", "blue")
    assert isinstance(found["sure"], bool)
    assert choice["finish_reason"] == "stop"
    [free] = server.chat()[1]["choices"]
    assert not free["message"]["content"].startswith("{"), "the form makes the difference"


def test_others_in_the_batch_are_free_and_streams_are_whole(server: Served) -> None:
    free = server.chat()[1]["choices"]
    _, text = server.text("POST", "/v1/chat/completions", asked(response_format=form(COLOR), stream=True))
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert streamed == server.chat(response_format=form(COLOR))[1]["choices"][0]["message"]["content"]
    assert server.chat()[1]["choices"] == free


def test_drawn_answers_and_the_responses_api_keep_to_it(server: Served) -> None:
    _, reply = server.chat(response_format=form(COLOR), temperature=1.5, n=3, seed=1)
    for choice in reply["choices"]:
        assert json.loads(choice["message"]["content"])["color"] in ("red", "blue")
    flat = {"format": {"type": "json_schema", "name": "seen", "schema": COLOR}}
    reply = server.client().responses.create(model="one", input="color?", text=flat)  # type: ignore[call-overload]
    assert json.loads(reply.output_text)["color"] in ("red", "blue")


def test_any_object(server: Served) -> None:
    _, reply = server.chat(response_format={"type": "json_object"}, max_tokens=8)
    assert reply["choices"][0]["message"]["content"].startswith("{")


def test_an_answer_that_is_computed_again_begins_again(server: Served) -> None:
    """As when another row makes its batch fail."""
    fails, step = [True], ContinuousBatch.step

    def failing(self: ContinuousBatch) -> bool:
        if fails and len(self.rows[0].tokens) == 3:
            fails.clear()
            raise RuntimeError
        return step(self)

    wanted = {"response_format": form(COLOR), "logprobs": True, "n": 2}
    expected = server.chat(**wanted)[1]["choices"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContinuousBatch, "step", failing)
        found = server.chat(**wanted)[1]["choices"]
    assert not fails
    assert [choice["message"] for choice in found] == [choice["message"] for choice in expected]
    for one, other in zip(found, expected, strict=True):
        tokens = [[each["token"] for each in choice["logprobs"]["content"]] for choice in (one, other)]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"response_format": form({"type": "objekt"})}, "the schema cannot be used"),
        ({"response_format": form({"type": "string", "description": "x" * 9000})}, "more than 8,192 characters"),
        ({"response_format": form(COLOR), "model": "beams"}, "not possible with beam search"),
        ({"response_format": {"type": "json_scheme"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "schema: is missing"),
    ],
)
def test_what_cannot_be_kept_to_is_said(given: dict[str, Any], said: str, server: Served) -> None:
    status, reply = server.chat(**given)
    assert status == 400
    assert said in reply["error"]["message"]
    assert server.chat()[0] == 200
