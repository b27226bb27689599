"""Nobody waits for somebody else's answer to end: newcomers join, and runs on one LM are decoded together."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import blips
import perceptune
import runs as dwarf_runs
import support
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.generate import ContinuousBatch
from perceptune.models.run_folder import load, save_run
from perceptune.serving.batch_groups import BatchedGroup
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from perceptune.types import Decoding, Sample
from servers import asked, data_url, load_runs, part, png, served

INJECTING: dict[str, dict[str, Any]] = {
    "epalm": {"name": "epalm", "n_levels": 2, "standardize": False},
    "epalm-pt": {"name": "epalm-pt", "n_levels": 2, "standardize": False},
    "limber": {"name": "limber", "standardize": False},
    "limber-2": {"name": "limber", "standardize": False},
}
COLORS = ("red", "green", (10, 200, 140))
QUESTIONS = ("color?", "what color is this picture?", "where is the cat", "a")


@pytest.fixture(scope="module")
def folders(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Methods that only inject, two of them alike but for their weights; one with the same slots and with adapters."""
    place = tmp_path_factory.mktemp("served")
    methods = {**INJECTING, "ada": {**INJECTING["epalm"], "adapters": True}}
    for seed, (name, method) in enumerate(methods.items()):
        given = dwarf_runs.recipe(dwarfs, method=method, seed=seed, train=support.train_section(lr=0.3, prompt_lr=0.3))
        perceptune.train(given, place / name)
    return [place / name for name in methods]


@pytest.fixture(scope="module")
def loaded(folders: list[Path]) -> Runs:
    return load_runs([str(folder) for folder in folders], Limits())


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step was of; every step takes a while."""
    step = ContinuousBatch.step
    seen: list[int] = []

    def slowly(self: ContinuousBatch) -> bool:
        seen.append(self.num_active)
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(ContinuousBatch, "step", slowly)
    return seen


def test_runs_that_only_inject_are_decoded_together(
    loaded: Runs, folders: list[Path], groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes when: each answer is that of its run alone."""
    mixed: list[set[str]] = []
    join = BatchedGroup.join

    def noting(self: BatchedGroup, others: list[BatchedGroup]) -> None:
        mixed.append({one._run.name for one in (self, *others)})
        join(self, others)

    monkeypatch.setattr(BatchedGroup, "join", noting)
    asks = [(folder, color, text) for color in COLORS for text in QUESTIONS for folder in folders]
    with served(loaded) as server, ThreadPoolExecutor(12) as pool:
        said = list(pool.map(
            lambda ask: server.chat(
                text=ask[2], media=[part(data_url(png(ask[1])))], model=ask[0].name, max_tokens=4 + len(ask[2]) % 7
            )[1]["choices"][0]["message"]["content"], asks,
        ))  # fmt: skip
    assert any(len(names) > 1 for names in mixed)
    assert all("ada" not in names for names in mixed if len(names) > 1), "adapters are for their own run"
    assert max(groups) > 4
    for folder in folders:
        model = load(folder, overrides=["cache.features=off"])
        for (own, color, text), answer in zip(asks, said, strict=True):
            if own == folder:
                decoding = Decoding(max_new_tokens=4 + len(text) % 7)
                raw = model.answer([Sample("x", {"image": png(color)}, text)], decoding=decoding)
                assert answer == loaded[folder.name].clean(raw[0]), (folder.name, color, text)
    assert len(set(said)) > 20


def test_a_newcomer_does_not_wait_for_a_long_answer(loaded: Runs, groups: list[int]) -> None:
    with served(loaded, Limits(batch=4)) as server:
        alone = server.chat(text="a", max_tokens=3, model="epalm")[1]["choices"]
        long = threading.Thread(target=server.chat, kwargs={"max_tokens": 100, "model": "epalm", "stop": ["#"]})
        long.start()
        assert server.settles("queue_depth", 0)
        while 1 not in groups:
            time.sleep(0.01)
        for model in ("epalm", "limber", "ada"):  # joined, joined where it can be, beside it in turns
            before = len(groups)
            answer = server.chat(text="a", max_tokens=3, model=model)[1]["choices"]
            assert long.is_alive(), "it came after the long one and ended before"
            assert len(groups) - before < 20
            assert model != "epalm" or answer == alone
        long.join()


def test_no_more_rows_than_allowed_are_computed_at_a_time(loaded: Runs, groups: list[int]) -> None:
    with served(loaded, Limits(batch=3)) as server, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: server.chat(text="a" * (1 + i), max_tokens=5, model="epalm"), range(12)))
    assert max(groups) == 3


def test_beams_and_others_take_turns(loaded: Runs, folders: list[Path]) -> None:
    """Four ways of decoding, one of which runs to its end in one turn: each answer is that of `answer()`."""
    ways = {"epalm": ["decode.beams=1"], "beams": ["decode.beams=3"], "restrained": ["decode.repetition_penalty=1.5"],
            "old": ["decode.beams=3", "decode.length_normalization=total", "decode.length_penalty=4"]}  # fmt: skip
    own = {name: load_runs([str(folders[0])], Limits(), overrides=given)["epalm"] for name, given in ways.items()}
    joint = Runs([replace(run, name=name) for name, run in own.items()])
    expected = {}
    for name, given in ways.items():
        model = load(folders[0], overrides=["cache.features=off", *given])
        raw = model.answer([Sample("x", {"image": png(color)}, "color?") for color in COLORS])
        expected |= {(name, color): own[name].clean(one) for color, one in zip(COLORS, raw, strict=True)}
    assert len({*expected.values()}) > 4
    with served(joint) as server, ThreadPoolExecutor(12) as pool:
        said = list(pool.map(
            lambda ask: server.chat(media=[part(data_url(png(ask[1])))], model=ask[0])[1]["choices"], [*expected] * 2
        ))  # fmt: skip
    assert [choices[0]["message"]["content"] for choices in said] == [*expected.values()] * 2


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_instructblip_is_served(kind: str, tmp_path: Path) -> None:
    """Beside its own `answer()`; without a picture, or with too long a question, it says so."""
    blips.save_blip(tmp_path / "base", kind)
    support.save_data(tmp_path / "data")
    given = blips.recipe(tmp_path / "base", tmp_path / "data/train.jsonl")
    save_run(tmp_path / "blip", perceptune.build(given))
    runs = load_runs([str(tmp_path / "blip")], Limits())
    model = load(tmp_path / "blip", overrides=["cache.features=off"])
    asks = [
        (color, text, tokens) for color in COLORS for text in ("color?", "what is this picture?") for tokens in (2, 6)
    ]
    with served(runs) as server, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(
            lambda ask: server.chat(
                text=ask[1], media=[part(data_url(png(ask[0])))], model="blip", max_tokens=ask[2]
            ), asks,
        ))  # fmt: skip
        for (color, text, tokens), (status, reply) in zip(asks, replies, strict=True):
            assert status == 200, reply
            raw = model.answer([Sample("x", {"image": png(color)}, text)], decoding=Decoding(max_new_tokens=tokens))
            assert reply["choices"][0]["message"]["content"] == runs["blip"].clean(raw[0])
            read = len(model.text.prompt_ids(Sample("x", {}, text))) - blips.N_QUERIES
            assert reply["usage"]["prompt_tokens"] == read
        drawn = server.chat(model="blip", temperature=1.5, seed=7, n=2, max_tokens=6)[1]["choices"]
        for i, choice in enumerate(drawn):
            decoding = Decoding(max_new_tokens=6, sample=True, temperature=1.5, seed=7 + i)
            raw = model.answer([Sample("x", {"image": png()}, "color?")], decoding=decoding)
            assert choice["message"]["content"] == runs["blip"].clean(raw[0])
        streamed = server.text("POST", "/v1/chat/completions", asked(model="blip", stream=True))
        assert streamed[1].endswith("data: [DONE]\n\n")
        status, answer = server.request("POST", "/v1/chat/completions", {**asked(model="blip"), "messages": [
            {"role": "user", "content": "color?"}]})  # fmt: skip
        assert (status, "images only" in answer["error"]["message"]) == (400, True)
        status, answer = server.chat(text="a " * 30, model="blip")
        assert (status, "Q-Former" in answer["error"]["message"]) == (400, True)
        assert not answer["error"]["message"].startswith("sample"), "found out before it waits"


def test_a_step_that_fails_fails_its_row_alone(loaded: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an answer: the others of its group are answered all the same."""
    feed, broken = DecodeState.decode_step, []

    def failing(self: DecodeState, tokens: Any) -> Any:
        if len(tokens) > 1 and not broken:
            broken.append(1)
            raise RuntimeError("not told to anybody")
        return feed(self, tokens)

    with served(loaded) as server, ThreadPoolExecutor(6) as pool:
        texts = ["color?", "a", "where is the cat"]
        right = [server.chat(text=text, model="epalm", max_tokens=9)[1]["choices"] for text in texts]
        monkeypatch.setattr(DecodeState, "decode_step", failing)
        got = list(pool.map(lambda text: server.chat(text=text, model="epalm", max_tokens=9), texts * 2))
    assert broken
    assert [status for status, _ in got] == [200] * 6
    assert [answer["choices"] for _, answer in got] == right * 2
