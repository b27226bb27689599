"""What reuse of earlier turns gains: the time to the first token of each turn of a conversation, with and without it.

    python -m benchmarks.turns RUN IMAGE... [--turns 4] [--rounds 5] [--json FILE]

RUN has `text.template: chat`. Two servers answer in turns, one with `reuse_mb: 0`; both get the same messages, whose
answers must be the same.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perceptune.serving.app import Access, make_app
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs, describe_runs, load_runs
from perceptune.serving.server import make_server

ASKED = ("Describe the photo.", "What else is there to see on it?", "Is it day or night?", "Is anybody there?",
         "What colors are there?", "Where may this be?")  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images", nargs="+", type=Path, help="attached to the first turns, one to each")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    images = [base64.b64encode(path.read_bytes()).decode() for path in options.images]
    kinds = {"without": Limits(reuse_mb=0), "with": Limits()}
    seconds: dict[str, list[list[float]]] = {kind: [[] for _ in range(options.turns)] for kind in kinds}
    name = Path(options.run).name
    with _served(options.run, kinds["without"]) as plain, _served(options.run, kinds["with"]) as reusing:
        ports = {"without": plain, "with": reusing}
        for number in range(options.rounds + 1):  # the first is a warm-up
            said = {kind: _talk(port, name, images, options.turns, f"Round {number}.") for kind, port in ports.items()}
            answers = {kind: [answer for answer, _ in turns] for kind, turns in said.items()}
            if answers["with"] != answers["without"]:
                raise SystemExit(f"the answers differ: {answers}")
            for kind, turns in said.items() if number else ():
                for place, (_, taken) in enumerate(turns):
                    seconds[kind][place].append(taken)
    medians = {kind: [statistics.median(each) for each in turns] for kind, turns in seconds.items()}
    print("turn  without    with   ratio  (milliseconds to the first token, median)")
    for place, (before, after) in enumerate(zip(medians["without"], medians["with"], strict=True), 1):
        print(f"{place:4}  {1000 * before:7.0f} {1000 * after:7.0f}   {after / before:.2f}")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n")


def _talk(port: int, model: str, images: Sequence[str], turns: int, system: str) -> list[tuple[str, float]]:
    """Return answer and seconds to the first token of each turn; another system message is another conversation."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    found = []
    for number in range(turns):
        content: list[dict[str, Any]] = [{"type": "text", "text": ASKED[number % len(ASKED)]}]
        if number < len(images):
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{images[number]}"}})
        messages.append({"role": "user", "content": content})
        answer, taken = _answer(port, {"model": model, "messages": messages, "stream": True, "max_tokens": 20})
        found.append((answer, taken))
        messages.append({"role": "assistant", "content": answer or "-"})
    return found


def _answer(port: int, body: dict[str, Any]) -> tuple[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began, first, pieces = time.perf_counter(), 0.0, list[str]()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(response.read().decode())
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        delta = json.loads(line[6:])["choices"][0]["delta"].get("content")
        if delta:
            first = first or time.perf_counter() - began
            pieces.append(delta)
    connection.close()
    return "".join(pieces), first or time.perf_counter() - began


@contextmanager
def _served(run: str, limits: Limits) -> Iterator[int]:
    def load() -> Runs:
        return load_runs(describe_runs([run]), limits)

    app = make_app(load(), limits, Access(), decoders=1)
    server = make_server(app, limits, "127.0.0.1", 0)
    server.config.log_level = "warning"
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
