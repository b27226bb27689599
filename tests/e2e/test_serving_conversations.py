"""Conversations with a served run: histories, several images, what it was trained on, and well-known clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import perceptune
import runs as dwarf_runs
import support
from perceptune.models.run_folder import CONVERSATIONS, META, save_run
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from perceptune.types import Mark, Message, Sample
from servers import KEY, Served, data_url, load_runs, part, png, served, turn

NOTE = "X-Perceptune-Note"
NO_SYSTEM = support.CHAT_TEMPLATE.replace(" in messages ", " in messages if message.role != 'system' ")
IMAGES = {color: part(data_url(png(color))) for color in ("red", "green", "blue")}
METHOD = {"name": "epalm", "n_levels": 2, "standardize": False}


@pytest.fixture(scope="module")
def loaded(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Chat templates: `one`, trained on conversations; `single`, not; `sequential`, with slots in the text; `deaf`."""
    place = tmp_path_factory.mktemp("talks")
    encoders = {"image": {"id": str(dwarfs / "encoder"), "max_media": 3}}
    lm, deaf = support.save_chat_lm(place / "lm"), support.save_chat_lm(place / "deaf-lm", template=NO_SYSTEM)
    chat: dict[str, Any] = {"encoders": encoders, "text": {"template": "chat"}, "lm": str(lm), "method": METHOD}
    limber = {"name": "limber", "standardize": False, "slot_positions": "sequential"}
    runs: dict[str, dict[str, Any]] = {
        "one": chat, "single": chat, "sequential": {**chat, "method": limber}, "deaf": {**chat, "lm": str(deaf)},
        "plain": {"encoders": encoders, "method": METHOD},
    }  # fmt: skip
    for name, changes in runs.items():
        save_run(place / name, perceptune.build({**dwarf_runs.recipe(dwarfs), **changes}))
    meta = place / "one" / META
    meta.write_text(json.dumps({**json.loads(meta.read_text()), CONVERSATIONS: True}))
    return load_runs([str(place / name) for name in runs], Limits())


@pytest.fixture(scope="module")
def server(loaded: Runs) -> Iterator[Served]:
    with served(loaded) as running:
        yield running


TURNS = [
    turn("system", "be kind"), turn("user", IMAGES["red"], "what color?"), turn("assistant", "red"),
    turn("user", "and this one?", IMAGES["green"]), turn("assistant", "green"), turn("user", "which is lighter?"),
]  # fmt: skip
SAMPLE = Sample(
    "x", {"image": (png("red"), png("green"))}, "which is lighter?",
    history=(
        Message("system", "be kind"), Message("user", "what color?", (Mark(0, "image"),)), Message("assistant", "red"),
        Message("user", "and this one?", (Mark(13, "image"),)), Message("assistant", "green"),
    ),
)  # fmt: skip


def post(server: Served, messages: list[Any], model: str = "one", **more: Any) -> tuple[int, dict[str, Any]]:
    return server.request("POST", "/v1/chat/completions", {"model": model, "messages": messages, **more})


@pytest.mark.parametrize("name", ["one", "sequential"])
def test_a_conversation_is_answered_as_one_sample(server: Served, loaded: Runs, name: str) -> None:
    status, reply = post(server, TURNS, name)
    run = loaded[name]
    assert status == 200, reply
    [expected] = run.model.answer([SAMPLE])
    assert reply["choices"][0]["message"]["content"] == run.clean(expected) != ""
    assert reply["usage"]["prompt_tokens"] == len(run.text.prompt_ids(SAMPLE))
    shorter = post(server, TURNS[:1] + TURNS[3:4], name)[1]["usage"]["prompt_tokens"]
    assert shorter < reply["usage"]["prompt_tokens"]


def test_several_images_are_taken_in_their_order(server: Served, loaded: Runs) -> None:
    """Also by a run with a plain template, in one question; the same image twice is two."""
    for name in ("one", "plain"):
        orders = [("red", "blue"), ("blue", "red"), ("red", "red"), ("red", "red", "blue")]
        said = []
        for order in orders:
            status, reply = post(server, [turn("user", *(IMAGES[color] for color in order), "color?")], name)
            assert status == 200, reply
            said.append(reply["choices"][0]["message"]["content"])
            sample = Sample("x", {"image": tuple(map(png, order))}, "color?")
            assert said[-1] == loaded[name].clean(loaded[name].model.answer([sample])[0])
        assert len({*said}) > 1


def test_a_run_says_that_it_was_trained_on_single_questions(server: Served) -> None:
    client = server.client()
    for name, note in (("one", None), ("single", "trained on single questions, not on conversations")):
        for stream in (False, True):
            raw = client.chat.completions.with_raw_response.create(model=name, messages=TURNS, stream=stream)
            assert raw.headers.get(NOTE) == note
            raw.http_response.close()
        for messages in (TURNS[3:4], TURNS[:1] + TURNS[3:4]):
            raw = client.chat.completions.with_raw_response.create(model=name, messages=messages)
            assert NOTE not in raw.headers


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        ("plain", TURNS, "answers single questions: its template has no place for a system message and earlier turns"),
        ("deaf", TURNS, "leaves out the system message"),
        ("one", [turn("user", *[IMAGES["red"]] * 4, "a")], "more than 3 images: 4 in this request"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_express_is_refused(server: Served, name: str, messages: list[Any], said: str) -> None:
    status, reply = post(server, messages, name)
    assert (status, reply["error"]["code"]) == (400, "unsupported_conversation")
    assert said in reply["error"]["message"]
    if name == "deaf":
        assert post(server, messages[1:], name)[0] == 200


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (part(data_url(b"no image")), "image 2 of message 3: "),
        (part(data_url(png(size=(2, 2)))), "image 2 of message 3: 2 x 2 pixels"),
        (part("data:image/png;base64,@@@@"), "image 2 of message 3 is not base64"),
        (part("ftp://x/y"), "image 2 of message 3: an address begins with"),
    ],
)  # fmt: skip
def test_a_damaged_medium_is_named(server: Served, broken: dict[str, Any], said: str) -> None:
    messages = [turn("user", IMAGES["red"], "a"), turn("assistant", "b"), turn("user", IMAGES["red"], "c", broken)]
    status, reply = post(server, messages)
    assert (status, reply["error"]["message"].startswith(said)) == (400, True), reply


def test_fetched_media_count_as_buffered(loaded: Runs, tmp_path: Path) -> None:
    """Their bytes are not in the request, and there may be many."""
    from perceptune.serving.local import LocalFiles

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_bytes(png() + bytes(300_000))
    messages = [turn("user", *(part(f"file://{path}") for path in paths), "color?")]
    for size, status in ((0.5, 429), (1.5, 200)):
        with served(loaded, Limits(buffer_mb=size), local=LocalFiles(tmp_path)) as server:
            assert post(server, messages)[0] == status
            assert server.settles("buffered_bytes", 0)


Ask = Callable[[list[Any]], str]


def ask_openai(server: Served) -> Ask:
    client: Any = server.client()

    def ask(messages: list[Any]) -> str:
        return str(client.chat.completions.create(model="one", messages=messages).choices[0].message.content)

    return ask


def ask_langchain(server: Served) -> Ask:
    models = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = models.ChatOpenAI(model="one", base_url=f"{server.base}/v1", api_key=KEY, max_retries=0)
    return lambda messages: str(model.invoke(messages).content)


def ask_litellm(server: Served) -> Ask:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")

    def ask(messages: list[Any]) -> str:
        reply = litellm.completion("openai/one", messages=messages, api_base=f"{server.base}/v1", api_key=KEY)
        return str(reply.choices[0].message.content)

    return ask


@pytest.mark.filterwarnings("ignore")  # of the clients
@pytest.mark.parametrize("client", [ask_openai, ask_langchain, ask_litellm])
def test_clients_hold_a_conversation(
    server: Served, loaded: Runs, client: Callable[[Served], Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three turns, of which two show an image; every answer is the model's own for that history."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks another host
    ask, run = client(server), loaded["one"]
    messages: list[Any] = []
    history: tuple[Message, ...] = ()
    images: list[bytes] = []
    for text, color in (("what color?", "red"), ("and this one?", "green"), ("which is lighter?", None)):
        shown = [] if color is None else [png(color)]
        messages.append(turn("user", text, *(part(data_url(data)) for data in shown)))
        images += shown
        marks = tuple(Mark(len(text), "image") for _ in shown)
        media = {"image": images[0] if len(images) == 1 else tuple(images)}
        sample = Sample("x", media, text, marks=marks, history=history)
        said = ask(messages)
        assert said == run.clean(run.model.answer([sample])[0])
        messages.append(turn("assistant", said))
        history = (*history, Message("user", text, marks), Message("assistant", said))


def test_openai_s_error_has_the_code(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="plain", messages=TURNS)
    assert (caught.value.code, caught.value.param) == ("unsupported_conversation", "messages")


@pytest.mark.parametrize("name", ["one", "sequential"])
def test_reused_turns_change_no_answer(server: Served, loaded: Runs, name: str) -> None:
    """A conversation of three questions and two images, beside other requests, with and without reuse."""

    def talk(to: Served) -> list[str]:
        messages, answers = list[Any](), list[str]()
        for content in ([IMAGES["red"], "what color?"], ["and this?", IMAGES["green"]], ["which is lighter?"]):
            messages.append(turn("user", *content))
            status, reply = post(to, messages, name, n=2, max_tokens=6)
            assert status == 200, reply
            answers += [choice["message"]["content"] for choice in reply["choices"]]
            messages.append(turn("assistant", answers[-1] or "a"))
        return answers

    before = _gauge(server, "perceptune_reused_turns_total")
    with served(loaded, Limits(reuse_mb=0)) as plain:
        assert talk(server) == talk(plain)
        assert _gauge(plain, "perceptune_reused_turns_total") == 0
    assert _gauge(server, "perceptune_reused_turns_total") - before >= 4
    assert _gauge(server, "perceptune_reuse_bytes") > 0


def _gauge(server: Served, name: str) -> float:
    _, text = server.text("GET", "/metrics")
    return next((float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0)
