"""Log-probabilities of served answers: those of `answer --logprobs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perceptune
import runs as dwarf_runs
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from perceptune.types import Decoding
from servers import Served, asked, data_url, load_runs, part, png, served

NEW = 6


@pytest.fixture(scope="module")
def folder(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scored") / "one"
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(place, perceptune.build(dwarf_runs.recipe(dwarfs, method=method, decode={"max_new_tokens": NEW})))
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(load_runs([f"one={folder}", f"beams={folder}"], Limits())) as running:
        yield running


def expected(folder: Path, decoding: Decoding | None = None) -> list[tuple[str, float]]:
    model = perceptune.load(folder)
    [found] = model.token_logprobs([perceptune.Sample("q", {"image": png()}, "color?")], decoding=decoding)
    return found


def told(choice: dict[str, Any]) -> list[tuple[str, float]]:
    return [(one["token"], one["logprob"]) for one in choice["logprobs"]["content"]]


def test_they_are_those_of_answer(server: Served, folder: Path) -> None:
    status, reply = server.chat(logprobs=True, top_logprobs=3)
    assert status == 200
    [choice] = reply["choices"]
    found, ours = told(choice), expected(folder)[:NEW]
    assert [token for token, _ in found] == [token for token, _ in ours]
    assert [value for _, value in found] == pytest.approx([value for _, value in ours], abs=1e-5)
    for one in choice["logprobs"]["content"]:
        values = [other["logprob"] for other in one["top_logprobs"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert one["logprob"] == values[0], "greedy"
        assert bytes(one["bytes"]).decode() == one["token"]
    assert server.chat()[1]["choices"][0]["logprobs"] is None


def test_a_search_has_them_too(folder: Path) -> None:
    with served(load_runs([f"one={folder}"], Limits(), overrides=["decode.beams=3"])) as server:
        [choice] = server.chat(logprobs=True)[1]["choices"]
    found, ours = told(choice), expected(folder, Decoding(max_new_tokens=NEW, beams=3))[:NEW]
    assert [token for token, _ in found] == [token for token, _ in ours]
    assert [value for _, value in found] == pytest.approx([value for _, value in ours], abs=1e-5)


def test_streamed_tokens_have_each_of_them_once(server: Served) -> None:
    whole = server.chat(logprobs=True, top_logprobs=1)[1]["choices"][0]["logprobs"]["content"]
    _, text = server.text("POST", "/v1/chat/completions", asked(logprobs=True, top_logprobs=1, stream=True))
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    found = [one for event in events for one in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert found == whole


def test_the_client_reads_them(server: Served) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "color?"}, part(data_url(png()))]}
    reply = server.client().chat.completions.create(model="one", messages=[message], logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    assert all(len(one.top_logprobs) == 2 for one in content)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"top_logprobs": 2}, "needs `logprobs: true`"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: ")],
)
def test_what_they_need_is_said(given: dict[str, Any], said: str, server: Served) -> None:
    status, message = server.ask(part(data_url(png())), **given)
    assert status == 400
    assert said in message
