"""What strangers do with connections, headers and bodies, and what becomes of the others meanwhile."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import openai
import pytest

from perceptune.models.slots.model import SlotModel
from perceptune.serving import server as serving_server
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from servers import KEY, Served, asked, served

pytestmark = pytest.mark.usefixtures("goes_on")


def test_the_body_is_not_read_beyond_its_limit(attacked_runs: Runs) -> None:
    with served(attacked_runs, Limits(body_mb=0.01)) as server:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += "Content-Type: application/json\r\n"
        assert b" 413 " in server.raw((head + "Content-Length: 99999999\r\n\r\n").encode())  # nothing of it was sent
        chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
        assert b" 413 " in server.raw((head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunk * 3)
        # One that is not far too large is heard out, or its client would see a broken connection and no status.
        assert server.request("POST", "/v1/chat/completions", asked("a" * 30_000))[0] == 413
        assert server.settles("buffered_bytes", 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421), ({"Host": "127.0.0.1.evil.example:80"}, 421), ({"Host": "localhost:9"}, 200),
        ({"Content-Type": "text/plain"}, 415), ({"Content-Encoding": "gzip"}, 415), ({"Authorization": "Basic x"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401), ({"Authorization": f"bearer {KEY}"}, 200),
        ({"X-Forwarded-For": "8.8.8.8", "X-Api-Key": KEY}, 200), ({"Authorization": ""}, 401),
    ],
)  # fmt: skip
def test_headers(attacked: Served, headers: dict[str, str], status: int) -> None:
    assert attacked.text("POST", "/v1/chat/completions", asked(), headers=headers)[0] == status


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/version", "/docs", "/openapi.json", "/nowhere", "//health", "/health/"]
)
def test_the_key_is_asked_for_everywhere_but_at_health(attacked: Served, path: str) -> None:
    assert attacked.text("GET", path, key=None)[0] == 401
    assert attacked.text("GET", "/health", key=None)[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 5\r\nContent-Length: 6", "Host: evil.x",
        "Content-Length: 5\r\nContent-Length: 5\r\nContent-Type: application/json", "Transfer-Encoding: gzip, chunked",
        "Content-Length: -1", "Content-Length: +5", "Authorization: Bearer x", "X: " + "a" * 100_000, "Bad Name: x",
    ],
)  # fmt: skip
def test_requests_that_end_in_two_places_or_say_things_twice(attacked: Served, lines: str) -> None:
    """And nothing that is smuggled behind them is taken for a request."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n\r\n"
    behind = "0\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY + "\r\n\r\n"
    answer = attacked.raw((head + behind).encode())
    assert answer.split(b" ")[1] in (b"400", b"501", b"415")
    assert b'{"version"' not in answer


def test_slow_clients_are_let_go(attacked_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_server, "HEADER_SECONDS", 0.3)
    with served(attacked_runs, Limits(body_seconds=0.3)) as server:
        started = time.monotonic()
        assert server.raw(b"GET /health HTTP/1.1\r\nHost: loc") == b""
        assert server.raw(b"") == b""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        assert b" 408 " in server.raw(head.encode())
        # A second request on the same connection, begun and never ended.
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while not got.endswith(b'{"status":"ok"}'):
                got += connection.recv(4096)
            connection.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert connection.recv(4096) == b""
        assert time.monotonic() - started < 4
        assert server.settles("requests_admitted", 0)


def test_a_full_queue_says_so(attacked_runs: Runs) -> None:
    with served(attacked_runs, Limits(queue=1)) as server:
        body = json.dumps(asked()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as holding:
            holding.sendall(head.encode() + body[:10])
            assert server.settles("requests_admitted", 1)
            status, answer = server.chat()
            assert (status, answer["error"]["code"]) == (429, "queue_full")
            holding.sendall(body[10:])
            assert b" 200 " in holding.recv(1000)
        assert server.chat()[0] == 200


def test_a_row_that_fails_leaves_the_others_of_its_batch(attacked_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, release = SlotModel.prompt, threading.Event()

    def failing(self: SlotModel, samples: Any, *given: Any) -> Any:
        release.wait(5)
        if any(sample.prompt == "poison" for sample in samples):
            raise RuntimeError("not told to anybody")
        return prompts(self, samples, *given)

    with served(attacked_runs) as server:
        right = server.chat()[1]["choices"]
        monkeypatch.setattr(SlotModel, "prompt", failing)
        got: dict[int, tuple[int, dict[str, Any]]] = {}
        texts = ["color?", "color?", "poison", "color?"]

        def send(i: int) -> None:
            got[i] = server.request("POST", "/v1/chat/completions", asked(texts[i]))

        threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert server.settles("queue_depth", 3)  # the first is being computed, the others go together
        release.set()
        for thread in threads:
            thread.join()
        assert [got[i][0] for i in range(4)] == [200, 200, 500, 200]
        assert all(got[i][1]["choices"] == right for i in (0, 1, 3))
        assert "not told" not in json.dumps(got[2])


def test_an_answer_that_takes_too_long(attacked_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is ready before both have timed out. A busy machine has seconds, too, in which to begin with one."""
    prompts, both_are_over = SlotModel.prompt, threading.Event()

    def slow(self: SlotModel, samples: Any, *given: Any) -> Any:
        both_are_over.wait(60)
        return prompts(self, samples, *given)

    with served(attacked_runs, Limits(seconds=5)) as server:
        monkeypatch.setattr(SlotModel, "prompt", slow)
        try:
            status, answer = server.chat()
            streamed = server.text("POST", "/v1/chat/completions", asked(stream=True))
        finally:
            both_are_over.set()
        assert (status, answer["error"]["code"]) == (503, "timeout")
        assert streamed[0] == 200
        assert '"code":"timeout"' in streamed[1]
        assert "[DONE]" not in streamed[1]


def test_too_much_has_its_own_status_for_openai_s_client(attacked_runs: Runs) -> None:
    with served(attacked_runs, Limits(body_mb=0.01)) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            server.client().chat.completions.create(**asked("a" * 30_000))
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_other_methods_are_told_which_there_are(attacked: Served) -> None:
    """Found by Schemathesis: a 405 names those that are allowed."""
    for path, method in (("/version", "GET"), ("/v1/chat/completions", "POST")):
        head = f"TRACE {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        answer = attacked.raw(head.encode()).lower()
        assert b" 405 " in answer
        assert f"allow: {method}".lower().encode() in answer


def test_a_page_of_a_listed_origin_may_ask(attacked: Served) -> None:
    ours, asks = "https://app.example", {"Access-Control-Request-Method": "POST"}
    for path in ("/v1/chat/completions", "/v1/models", "/nowhere"):
        status, headers, body = attacked.headers("OPTIONS", path, {"Origin": ours, **asks}, key=None)
        assert (status, body, headers["access-control-allow-origin"]) == (204, b"", ours)
        assert {"authorization", "content-type"} <= {*headers["access-control-allow-headers"].lower().split(", ")}
        assert "POST" in headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in headers
    for key, status in ((KEY, 200), (None, 401)):  # a page can read why it is refused
        answer = attacked.headers("GET", "/v1/models", {"Origin": ours}, key=key)
        assert (answer[0], answer[1]["access-control-allow-origin"], answer[1]["vary"]) == (status, ours, "Origin")


@pytest.mark.parametrize(
    "origin", ["https://app.example.evil", "http://app.example", "null", "https://app.example:8443"]
)
def test_pages_of_other_origins_may_not(attacked: Served, origin: str) -> None:
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, headers, body = attacked.headers("OPTIONS", "/v1/chat/completions", asks, key=None)
    assert (status, b"--allowed-origins" in body) == (403, True)
    assert not any(name.startswith("access-control") for name in headers)
    status, headers, _ = attacked.headers("GET", "/v1/models", {"Origin": origin})
    assert (status, "access-control-allow-origin" in headers) == (200, False)


def test_a_preflight_passes_nothing_but_the_key(attacked: Served) -> None:
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert attacked.headers("OPTIONS", "/v1/models", {**asks, "Host": "evil.example"}, key=None)[0] == 421
    assert attacked.headers("OPTIONS", "/v1/models", {"Origin": asks["Origin"]}, key=None)[0] == 401
    assert attacked.headers("POST", "/v1/chat/completions", asks, key=None)[0] == 401
    head = "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nAccess-Control-Request-Method: GET\r\n"
    twice = "Origin: https://app.example\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n"
    assert b" 400 " in attacked.raw((head + twice).encode())


def test_options_and_head_are_answered_on_every_route(attacked: Served) -> None:
    described = attacked.request("GET", "/openapi.json")[1]["paths"]
    for path in [*(path for path in described if "{" not in path), "/v1/models/one", "/v1/models/none", "/nowhere"]:
        status, headers, body = attacked.headers("HEAD", path)
        same, as_get, _ = attacked.headers("GET", path)
        assert (status, body, headers["content-type"]) == (same, b"", as_get["content-type"]), path
        if path != "/metrics":  # which counts these
            assert headers.get("content-length") == as_get.get("content-length")
        if path != "/nowhere":
            status, headers, body = attacked.headers("OPTIONS", path)
            allowed = headers["allow"].split(", ")
            assert (status, body, "OPTIONS" in allowed) == (204, b"", True)
            assert ("HEAD" in allowed) == ("GET" in allowed) == ("head" in described.get(path, {"head": 0}))
    assert attacked.headers("HEAD", "/health", key=None)[0] == 200
    assert attacked.headers("HEAD", "/v1/models", key=None)[0] == 401


def test_what_openai_s_client_and_others_send_is_answered(attacked: Served) -> None:
    """Their defaults and nulls give the answer that a request without them gets."""
    client = attacked.client()
    plain = client.chat.completions.create(**asked(max_tokens=6, temperature=0))
    body = asked(max_tokens=6, temperature=0)
    body["messages"] = [{"role": "system", "content": ""}, {**body["messages"][0], "name": None}]
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    body["messages"][1]["content"][1] = {"type": "image_url", "image_url": url}
    more = {
        "n": None, "top_logprobs": None, "tool_choice": "none", "parallel_tool_calls": False, "frequency_penalty": 0.0,
        "extra_body": {"top_k": 50, "repetition_penalty": 1.0, "stop_token_ids": [], "guided_json": None},
    }  # fmt: skip
    assert client.chat.completions.create(**body, **more).choices == plain.choices
    long = client.chat.completions.create(**asked(max_tokens=4096))
    assert long.usage is not None
    assert long.usage.completion_tokens <= 48
    assert (long.choices[0].finish_reason == "length") == (long.usage.completion_tokens == 48)
    body["messages"][1]["content"][1] = {"type": "input_image", "image_url": url}
    with pytest.raises(openai.BadRequestError, match="allowed are text, image_url") as caught:
        client.chat.completions.create(**body)
    assert caught.value.param == "messages.1.content.1"
