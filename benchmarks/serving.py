"""A served run under load: wrong, lost and failed answers, memory, and how much batching gains.

    python -m benchmarks.serving RUN --requests 2000 --clients 32

Starts `perceptune serve RUN` in a process of its own. Pictures of many sizes and questions go to it from many clients
at a time, one request in twenty malformed in one of several ways, each fifth one streamed. Every answer is compared
with `answer()` of the run; malformed requests must be refused with 4xx. Good requests then go by turns to this server
and to one that computes one at a time, both warm. Exits with 1 for a wrong or lost answer, a 5xx, or memory that grows
by more than a twentieth after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import httpx2
import psutil
from PIL import Image

SIDES = (16, 64, 224, 640, 1280)
QUESTIONS = ("what color is this picture?", "color?", "is there a dog?", "how many people are there in this picture?")
MALFORMED = 0.05
STREAMED = 0.2
LOOK_EVERY = 250  # requests
GROWN = 1.05
TRIES = 50  # after 429, a tenth of a second apart


@dataclass
class Tally:
    """What came of the requests."""

    right: int = 0
    refused: int = 0  # malformed ones, with 4xx
    retried: int = 0  # turned away with 429, then answered
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # 5xx
    seconds: list[float] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Those of the other one, too."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def share(self, part: float) -> float:
        """A quantile of the times in seconds."""
        return sorted(self.seconds)[int(part * (len(self.seconds) - 1))]


@dataclass(frozen=True)
class Request:
    body: bytes
    expected: str | None  # None: to be refused
    stream: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=60, help="different questions about different pictures")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--warm-up", type=int, default=600, help="requests before memory is looked at")
    parser.add_argument("--rounds", type=int, default=5, help="of batched against one at a time")
    parser.add_argument("--round-requests", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    requests = make_requests(options)
    good = [one for one in requests if one.expected is not None and not one.stream][: options.round_requests]
    found: dict[str, Any] = {"requests": len(requests), "clients": options.clients}
    with Server(options.run) as server, Server(options.run, "--batch", "1") as single:
        asyncio.run(load(server.port, (requests * 2)[: options.warm_up], options.clients))
        memory = [server.memory()]
        tally = Tally()
        started = time.monotonic()
        for part in range(0, len(requests), LOOK_EVERY):
            tally.add(asyncio.run(load(server.port, requests[part : part + LOOK_EVERY], options.clients)))
            memory.append(server.memory())
        found |= {"seconds": time.monotonic() - started, "memory_mb": memory}
        asyncio.run(load(single.port, good, options.clients))
        rates = [
            (rate(server.port, good, options.clients), rate(single.port, good, options.clients))
            for _ in range(options.rounds)
        ]
    found["batched_per_second"], found["one_at_a_time_per_second"] = map(statistics.median, zip(*rates, strict=True))
    found["times_as_many"] = statistics.median(batched / one for batched, one in rates)
    found |= {name: len(getattr(tally, name)) for name in ("wrong", "lost", "failed")}
    found |= {"right": tally.right, "refused": tally.refused, "retried": tally.retried}
    found |= {"p50": tally.share(0.5), "p95": tally.share(0.95)}
    found["examples"] = [*tally.wrong[:3], *tally.lost[:3], *tally.failed[:3]]
    print(json.dumps(found, indent=2) if options.json else told(found))
    return int(any(found[name] for name in ("wrong", "lost", "failed")) or max(memory) > GROWN * memory[0])


def told(found: dict[str, Any]) -> str:
    batched, single = found["batched_per_second"], found["one_at_a_time_per_second"]
    return "\n".join([
        f"{found['requests']} requests of {found['clients']} clients in {found['seconds']:.1f} s",
        f"right {found['right']}, refused as they should be {found['refused']}, turned away first {found['retried']}",
        f"wrong {found['wrong']}, lost {found['lost']}, 5xx {found['failed']}",
        f"p50 {found['p50'] * 1000:.0f} ms, p95 {found['p95'] * 1000:.0f} ms",
        f"memory after warm-up, then every {LOOK_EVERY} requests: {[round(mb) for mb in found['memory_mb']]} MB",
        f"batched {batched:.1f} answers/s, one at a time {single:.1f}; median of the rounds' ratios "
        f"{found['times_as_many']:.2f}",
        *found["examples"],
    ])  # fmt: skip


class Server:
    """`perceptune serve` in a process of its own."""

    def __init__(self, run: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "perceptune", "serve", f"run={run}", "--port", str(self.port), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        for _ in range(1200):
            if self.process.poll() is not None:
                raise SystemExit("the server ended before it answered")
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"http://127.0.0.1:{self.port}/health").is_success:
                    return self
            time.sleep(0.1)
        raise SystemExit("the server does not answer")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def memory(self) -> float:
        """MB in memory, those of its own processes included."""
        process = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in [process, *process.children()]) / 1e6


def make_requests(options: argparse.Namespace) -> list[Request]:
    """Questions with the run's own answers, in a random order, and what is none among them."""
    from perceptune import Sample, load
    from perceptune.data.build_task import make_task
    from perceptune.types import Decoding

    chance = random.Random(options.seed)
    model = load(options.run, overrides=["cache.features=off"])
    samples = [
        Sample(str(i), {"image": picture(chance)}, QUESTIONS[i % len(QUESTIONS)]) for i in range(options.distinct)
    ]
    raw = model.answer(samples, decoding=Decoding(max_new_tokens=options.tokens))
    clean = make_task(model.recipe).clean if model.recipe.task else str.strip
    pairs = list(zip(samples, map(clean, raw), strict=True))
    requests = []
    for _ in range(options.requests):
        sample, expected = chance.choice(pairs)
        body = asked(sample.media["image"], sample.prompt, options.tokens)
        if chance.random() < MALFORMED:
            requests.append(Request(chance.choice(SPOILT)(body), None, False))
        else:
            stream = chance.random() < STREAMED
            requests.append(Request(json.dumps({**body, "stream": stream}).encode(), expected, stream))
    return requests


def picture(chance: random.Random) -> bytes:
    """A coarse random pattern of some size and shape."""
    width, height = (round(chance.choice(SIDES) * chance.uniform(0.7, 1.3)) for _ in range(2))
    file = io.BytesIO()
    small = Image.frombytes("RGB", (8, 8), chance.randbytes(192))
    small.resize((width, height)).save(file, chance.choice(["jpeg", "png"]))
    return file.getvalue()


def asked(image: Any, question: str, tokens: int) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    return {
        "model": "run", "messages": [{"role": "user", "content": content}], "max_completion_tokens": tokens,
        "temperature": 0,
    }  # fmt: skip


def _with_url(change: Any) -> Any:
    def spoil(body: dict[str, Any]) -> bytes:
        body = json.loads(json.dumps(body))
        part = body["messages"][0]["content"][1]["image_url"]
        part["url"] = change(part["url"])
        return json.dumps(body).encode()

    return spoil


# Each makes of a good request's body one that must be refused.
SPOILT = (
    _with_url(lambda url: url[: len(url) // 2 // 4 * 4 + 2]),
    _with_url(lambda url: url[:200]),
    _with_url(lambda _: "http://127.0.0.1/picture.png"),
    _with_url(lambda _: "file:///etc/passwd"),
    lambda body: json.dumps({**body, "model": "another"}).encode(),
    lambda body: json.dumps({**body, "max_completion_tokens": 10**6}).encode(),
    lambda body: json.dumps({**body, "messages": []}).encode(),
    lambda body: json.dumps(body).encode()[:-20],
    lambda _: b"\xff" * 1000,
)


def rate(port: int, requests: list[Request], clients: int) -> float:
    """Answers a second."""
    started = time.monotonic()
    asyncio.run(load(port, requests, clients))
    return len(requests) / (time.monotonic() - started)


async def load(port: int, requests: list[Request], clients: int) -> Tally:
    """Sends them all, `clients` at a time."""
    tally, left = Tally(), iter(requests)
    limits = httpx2.Limits(max_keepalive_connections=0)  # one request a connection
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300, limits=limits) as http:

        async def client() -> None:
            for request in left:
                started = time.monotonic()
                await one(http, request, tally)
                tally.seconds.append(time.monotonic() - started)

        await asyncio.gather(*(client() for _ in range(clients)))
    return tally


async def one(http: httpx2.AsyncClient, request: Request, tally: Tally) -> None:
    headers = {"Content-Type": "application/json"}
    for _ in range(TRIES):
        try:
            response = await http.post("/v1/chat/completions", content=request.body, headers=headers)
        except httpx2.HTTPError as error:
            tally.lost.append(f"lost: {error!r}")
            return
        if response.status_code != 429:
            break
        tally.retried += 1
        await asyncio.sleep(0.1)
    status, body = response.status_code, response.content
    if status >= 500:
        tally.failed.append(f"{status}: {body[:200]!r}")
    elif request.expected is None:
        if 400 <= status < 429:
            tally.refused += 1
        else:
            tally.wrong.append(f"a malformed request got {status}: {body[:200]!r}")
    elif status != 200:
        tally.wrong.append(f"a good request got {status}: {body[:200]!r}")
    elif (said := streamed(body) if request.stream else content(body)) != request.expected:
        tally.wrong.append(f"{said!r} instead of {request.expected!r}")
    else:
        tally.right += 1


def content(body: bytes) -> str:
    return json.loads(body)["choices"][0]["message"]["content"]


def streamed(body: bytes) -> str:
    """The pieces put together; nothing that ends without its end counts."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    if lines[-1] != "[DONE]":
        return f"a stream without an end: {lines[-1][:100]}"
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


if __name__ == "__main__":
    sys.exit(main())
