"""A served run answers OpenAI's own client as `perceptune answer` does."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

import perceptune
import runs as dwarf_runs
import support
from forks import Fork
from perceptune.cli.main import run as cli
from perceptune.models.run_folder import load
from perceptune.serving.limits import Limits
from perceptune.serving.requests import Job
from perceptune.serving.runs import Runs
from perceptune.types import Decoding, Sample
from servers import KEY, Served, asked, data_url, load_runs, part, photo, png, served

TAKE = Job.append_token
QUESTIONS = ("color?", "what color is this picture?", "where is the cat", "a")
COLORS = ("red", "green", (10, 200, 140))


@pytest.fixture(scope="module")
def folders(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods on one LM and encoder: the second one hangs adapters onto the LM."""
    place = tmp_path_factory.mktemp("served")
    methods = {"one": {"name": "epalm", "n_levels": 2}, "two": {"name": "epalm-ada", "n_levels": 2}}
    for name, method in methods.items():
        given = dwarf_runs.recipe(dwarfs, method=method, train=support.train_section(lr=0.3, prompt_lr=0.3))
        perceptune.train(given, place / name)
    return [place / name for name in methods]


@pytest.fixture(scope="module")
def loaded(folders: list[Path]) -> Runs:
    return load_runs([str(folder) for folder in folders], Limits())


@pytest.fixture(scope="module")
def server(loaded: Runs) -> Iterator[Served]:
    with served(loaded) as running:
        yield running


def text_of(server: Served, color: object, question: str, model: str = "one", **more: object) -> str:
    reply = server.client().chat.completions.create(**asked(question, part(data_url(png(color))), model=model, **more))
    return reply.choices[0].message.content or ""


def test_a_served_answer_is_that_of_the_command(
    server: Served, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        assert cli(["answer", str(folder), "color?", "--image", str(photo(tmp_path))]) == 0
        said = capsys.readouterr().out.rstrip("\n")
        assert text_of(server, "red", "color?", folder.name) == said != ""


def test_requests_that_come_together_get_what_they_get_alone(server: Served, folders: list[Path]) -> None:
    """Runs, questions and lengths mixed: each as the run's own `answer` says it."""
    asks = [
        (folder, color, question, tokens)
        for folder in folders for color in COLORS for question in QUESTIONS for tokens in (3, 12)
    ]  # fmt: skip
    before = server.metric("batch_rows_sum"), server.metric("batch_rows_count")
    with ThreadPoolExecutor(16) as pool:
        said = list(
            pool.map(lambda ask: text_of(server, ask[1], ask[2], ask[0].name, max_completion_tokens=ask[3]), asks)
        )
    rows, steps = server.metric("batch_rows_sum") - before[0], server.metric("batch_rows_count") - before[1]
    assert rows > 2 * steps  # some did go together
    for folder in folders:
        model = load(folder, overrides=["cache.features=off"])
        own = [(ask, text) for ask, text in zip(asks, said, strict=True) if ask[0] == folder]
        for tokens in (3, 12):
            some = [(ask, text) for ask, text in own if ask[3] == tokens]
            samples = [Sample("x", {"image": png(ask[1])}, ask[2]) for ask, _ in some]
            assert [text for _, text in some] == [
                cleaned(one) for one in model.answer(samples, decoding=Decoding(max_new_tokens=tokens))
            ]
    assert len(set(said)) > 10


def cleaned(raw: str) -> str:
    lines = raw.strip().splitlines()
    return lines[0].rstrip(". ") if lines else ""


def test_runs_share_their_frozen_parts_and_keep_their_own_apart(loaded: Runs, folders: list[Path]) -> None:
    one, two = loaded["one"].model, loaded["two"].model
    assert one.lm is two.lm
    assert one.encoders["image"] is two.encoders["image"]
    sample = Sample("x", {"image": png()}, "color?")
    alone = [load(folder, overrides=["cache.features=off"]).answer([sample]) for folder in folders]
    with loaded["two"].attachments.on():
        assert two.answer([sample]) == alone[1]
    assert two.answer([sample]) != alone[1]  # its adapters are off
    with loaded["one"].attachments.on():
        assert one.answer([sample]) == alone[0]


def test_streams_give_the_same_words_in_pieces(server: Served) -> None:
    whole = text_of(server, "blue", "color?", max_completion_tokens=20)
    stream = server.client().chat.completions.create(
        **asked("color?", part(data_url(png("blue"))), max_completion_tokens=20),
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(words) == whole
    assert len(words) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    usage = chunks[-1].usage
    assert usage is not None
    assert chunks[-1].choices == []
    assert usage.prompt_tokens == len("Question: color? Answer:")
    assert 0 < usage.completion_tokens <= 20
    ends = server.text("POST", "/v1/chat/completions", asked(stream=True))[1]
    assert ends.endswith("data: [DONE]\n\n")
    assert '"usage"' not in ends


def test_lengths_stops_choices_and_draws(server: Served, folders: list[Path]) -> None:
    client = server.client()
    long = client.chat.completions.create(**asked(max_completion_tokens=30))
    text = long.choices[0].message.content or ""
    assert long.choices[0].finish_reason in ("stop", "length")
    short = client.chat.completions.create(**asked(max_tokens=2))
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 2
    stopped = client.chat.completions.create(**asked(max_completion_tokens=30, stop=["never said", text[3:5]]))
    assert stopped.usage is not None
    assert long.usage is not None
    assert stopped.usage.completion_tokens < long.usage.completion_tokens, "what would be cut off is not computed"
    assert stopped.choices[0].message.content == text[: text.index(text[3:5])].rstrip(" .")
    assert stopped.choices[0].finish_reason == "stop"
    drawn = client.chat.completions.create(**asked(n=3, temperature=1.5, seed=7, max_tokens=8))
    texts = [choice.message.content for choice in drawn.choices]
    assert len(set(texts)) > 1
    model = load(folders[0], overrides=["cache.features=off"])
    for i, said in enumerate(texts):
        decoding = Decoding(max_new_tokens=8, sample=True, temperature=1.5, seed=7 + i)
        assert [said] == [
            cleaned(one) for one in model.answer([Sample("x", {"image": png()}, "color?")], decoding=decoding)
        ]


def test_models_and_the_other_routes(server: Served) -> None:
    assert [model.id for model in server.client().models.list()] == ["one", "two"]
    assert server.client().models.retrieve("two").owned_by == "perceptune"
    assert server.request("GET", "/version") == (200, {"version": perceptune.__version__})
    assert server.request("GET", "/health", key=None) == (200, {"status": "ok"})
    assert "/v1/chat/completions" in server.text("GET", "/docs")[1]
    assert "max_completion_tokens" in server.text("GET", "/openapi.json")[1]
    assert 'perceptune_requests_total{route="/version",status="200"}' in server.text("GET", "/metrics")[1]


def test_mistakes_have_openai_s_errors(server: Served) -> None:
    with pytest.raises(openai.AuthenticationError, match="API key"):
        server.client("wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="did you mean `two`"):
        text_of(server, "red", "color?", "twoo")
    with pytest.raises(openai.BadRequestError, match="question has no text"):
        text_of(server, "red", "??")
    with pytest.raises(openai.BadRequestError, match="takes no audio"):
        server.client().chat.completions.create(**asked("color?", part("data:audio/wav;base64,AAAA", "audio")))
    body = asked()
    body["messages"].insert(0, {"role": "system", "content": "be kind"})
    with pytest.raises(openai.BadRequestError, match="single questions"):
        server.client().chat.completions.create(**body)
    with pytest.raises(openai.BadRequestError) as caught:
        text_of(server, "red", "color?", frequency_penalty=1.0)
    assert caught.value.param == "frequency_penalty"
    status, answer = server.request("GET", "/nowhere")
    assert (status, answer["error"]["type"]) == (404, "not_found_error")


def test_a_client_that_goes_away_frees_its_place(loaded: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of clients that went away leave their batch; whole answers and streams alike."""
    computed = slow(monkeypatch)
    with served(loaded, Limits(queue=1)) as server:
        with pytest.raises(openai.APITimeoutError):
            server.client().with_options(timeout=0.5).chat.completions.create(**asked(max_tokens=90))
        assert server.settles("cancelled_total", 1)
        _require_idle(server, computed)
        stream = server.client().chat.completions.create(**asked(max_tokens=90), stream=True)
        for _ in range(4):
            next(stream)
        stream.close()
        _require_idle(server, computed)
        assert text_of(server, "red", "color?", max_tokens=2)


def _require_idle(server: Served, computed: list[int]) -> None:
    assert server.settles("requests_admitted", 0)
    time.sleep(0.2)
    stopped_at = len(computed)
    time.sleep(0.2)
    assert len(computed) == stopped_at < 60


def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every token takes a while; the list grows with each."""
    from perceptune.lm.generation.decode_state import DecodeState

    feed, computed = DecodeState.decode_step, []

    def slowly(self: DecodeState, tokens: object) -> object:
        time.sleep(0.05)
        computed.append(1)
        return feed(self, tokens)

    monkeypatch.setattr(DecodeState, "decode_step", slowly)
    monkeypatch.setattr("perceptune.serving.scheduler.Job.append_token", never_ending)
    return computed


def never_ending(self: object, token: int, eos: int) -> bool:
    """As `Job.take`, which would stop at an end token: what a dwarf says may be short."""
    return TAKE(self, 5 if token == eos else token, eos)  # type: ignore[arg-type]


def test_the_command_serves(folders: list[Path], tmp_path: Path) -> None:
    """In a process of its own, stopped as a terminal does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", f"mine={folders[0]}", "--port", str(port), "--api-key", KEY]
    server, status = Served(port, None), 0
    with Fork(lambda: cli(words), tmp_path / "said") as process:
        for _ in range(1200):
            try:
                status, _ = server.request("GET", "/health", key=None)
                if status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        assert status == 200
        status, answer = server.chat(model="mine")
        assert (status, answer["object"]) == (200, "chat.completion"), json.dumps(answer)
        process.send(signal.SIGINT)
        process.wait(60)
    said = (tmp_path / "said").read_text()
    assert f"serving mine at http://127.0.0.1:{port}/v1" in said
    assert "Traceback" not in said
