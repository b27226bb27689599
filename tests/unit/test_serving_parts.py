"""What a server is made of: files below one folder, processes that decode, the gate, limits."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.lm.generation.logprobs import TokenDetail
from perceptune.serving import media_worker_pool
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.media_worker_pool import MediaWorkerPool
from perceptune.serving.metrics import Metrics
from perceptune.serving.origins import Origins, parse_origins
from perceptune.serving.scheduler import Scheduler
from perceptune.serving.server import hosts_of, is_loopback
from perceptune.serving.streaming import Scored, content, cut, sure
from servers import png


@pytest.fixture
def local(tmp_path: Path) -> LocalFiles:
    """`open/picture.png` may be read, `secret` may not; links lead from the one to the other."""
    folder = tmp_path / "open"
    (folder / "below").mkdir(parents=True)
    (folder / "picture.png").write_bytes(b"seen")
    (folder / "below/päth picture.png").write_bytes(b"below")
    (folder / "inside").symlink_to(folder / "picture.png")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "open-too").mkdir()
    (tmp_path / "open-too/x").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return LocalFiles(folder)


def test_files_below_the_folder_are_read(local: LocalFiles) -> None:
    for name, data in (("picture.png", b"seen"), ("below/p%C3%A4th%20picture.png", b"below"), ("inside", b"seen")):
        assert local.read(f"file://{local.folder}/{name}", 100) == data
        assert local.read(f"file://localhost{local.folder}/{name}", 100) == data
    with pytest.raises(ApiError, match="larger than") as caught:
        local.read(f"file://{local.folder}/picture.png", 3)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "url",
    [
        "file://{}/../secret", "file://{}/%2e%2e/secret", "file://{}/%2E%2E%2Fsecret", "file://{}/link", "file://{}-too/x",
        "file://{}/up/secret", "file://{}/below/../../secret", "file:///etc/passwd", "file://{}/..\\secret",
        "file://{}/pipe", "file://{}", "file://{}/below", "file://{}/nothing", "file://other{}/picture.png",
        "file://{}/picture.png?x", "file://{}/picture.png%00.jpg", "file:///C:/Windows/win.ini", "file:picture.png",
        "file://C:\\Windows\\win.ini", "file:////server/share/x", "file://[", "file:///proc/self/environ",
    ],
)  # fmt: skip
def test_nothing_else_is_and_all_in_the_same_words(local: LocalFiles, url: str) -> None:
    with pytest.raises(ApiError, match=r"^no such file among those that may be read$"):
        local.read(url.format(local.folder), 10_000)


def test_a_link_put_there_after_the_check_is_not_followed(local: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking and opening, a folder on the way becomes a link to the outside."""
    resolve = Path.resolve

    def swapping(self: Path, strict: bool = False) -> Path:
        found = resolve(self, strict)
        if found.name == "x":
            found.parent.rename(local.folder / "was")
            found.parent.symlink_to(local.folder.parent / "open-too")
        return found

    (local.folder / "swapped").mkdir()
    (local.folder / "swapped/x").write_bytes(b"harmless")
    monkeypatch.setattr(Path, "resolve", swapping)
    with pytest.raises(ApiError, match="no such file"):
        local.read(f"file://{local.folder}/swapped/x", 100)


def with_decoders(do: Callable[[MediaWorkerPool], Any]) -> None:
    async def run() -> None:
        decoders = MediaWorkerPool(Limits(decode_seconds=0.2), 1, 4)
        try:
            await do(decoders)
        finally:
            decoders.close()

    asyncio.run(run())


def dummy_batch(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The first process that is started runs this code instead."""
    popen, given = media_worker_pool.subprocess.Popen, [code]

    def started(command: list[str], **more: Any) -> Any:
        return popen([sys.executable, "-c", given.pop()] if given else command, **more)

    monkeypatch.setattr(media_worker_pool.subprocess, "Popen", started)


def test_a_process_that_hangs_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    dummy_batch(monkeypatch, "import time; time.sleep(60)")

    async def do(decoders: MediaWorkerPool) -> None:
        started = time.monotonic()
        monkeypatch.setattr(media_worker_pool, "_GRACE", 0.1)
        with pytest.raises(ApiError, match="too long to decode"):
            await decoders.check(png(), "image")
        assert time.monotonic() - started < 5
        monkeypatch.setattr(media_worker_pool, "_GRACE", 20)
        await decoders.check(png(), "image")

    with_decoders(do)


def test_a_process_that_crashes_fails_its_medium_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    dummy_batch(monkeypatch, "import os, sys; sys.stdin.buffer.readline(); os.abort()")

    async def do(decoders: MediaWorkerPool) -> None:
        monkeypatch.setattr(media_worker_pool, "_GRACE", 20)
        with pytest.raises(ApiError, match="cannot be decoded"):
            await decoders.check(png(), "image")
        await decoders.check(png(), "image")

    with_decoders(do)


def test_a_process_that_ended_while_nobody_asked_is_replaced() -> None:
    async def do(decoders: MediaWorkerPool) -> None:
        running = decoders._all[0]._running
        assert running is not None
        running.kill()
        running.wait()
        await decoders.check(png(), "image")

    with_decoders(do)


def test_a_process_that_is_given_up_while_it_starts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next medium would be told to it, too, and whoever waits longer would read the other one's answer."""
    popen, begun, go_on, started = media_worker_pool.subprocess.Popen, threading.Event(), threading.Event(), []

    def slowly(*given: Any, **more: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        started.append(popen(*given, **more))
        return started[-1]

    async def do(decoders: MediaWorkerPool) -> None:
        monkeypatch.setattr(media_worker_pool, "_GRACE", 40)
        running = decoders._all[0]._running
        assert running is not None
        running.kill()
        running.wait()
        monkeypatch.setattr(media_worker_pool.subprocess, "Popen", slowly)
        leaving = asyncio.create_task(decoders.check(png(), "image"))
        await asyncio.to_thread(begun.wait, 20)
        leaving.cancel()
        await asyncio.wait([leaving])
        go_on.set()
        while not started:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(started[0].wait, 20)
        await decoders.check(png(), "image")
        assert len(started) == 2

    with_decoders(do)


def test_decoders_do_not_know_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTUNE_API_KEY", "secret")
    dummy_batch(monkeypatch, "import os, sys; sys.stdin.buffer.readline();"
             "print('{\"error\": \"%s\"}' % os.environ.get('PERCEPTUNE_API_KEY'), flush=True)")  # fmt: skip

    async def do(decoders: MediaWorkerPool) -> None:
        monkeypatch.setattr(media_worker_pool, "_GRACE", 20)
        with pytest.raises(ApiError, match=r"^None$"):
            await decoders.check(b"", "image")

    with_decoders(do)


def test_a_row_is_tried_alone_when_the_one_to_blame_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = []

    async def answer(job: Any) -> None:
        alone.append(job)

    async def run() -> None:
        scheduler = Scheduler(Limits(), Metrics())
        monkeypatch.setattr(scheduler, "_alone", answer)
        jobs: list[Any] = [
            SimpleNamespace(ended=False, is_cancelled=gone, restart=lambda: None) for gone in (True, False)
        ]
        assert await scheduler._computed(lambda: 1 / 0, jobs) is None
        assert alone == jobs[1:]
        await scheduler.close()

    asyncio.run(run())


def test_log_probabilities_of_tokens_that_come_meanwhile_are_told_once() -> None:
    """Each token is appended behind its details, by another thread, and may come between any two lines."""

    class Growing(list[int]):
        def __len__(self) -> int:
            found = super().__len__()
            if found < 6:  # one more as soon as its length was read
                job.details.append(TokenDetail(-float(found), []))
                self.append(found)
            return found

    job: Any = SimpleNamespace(top_logprobs=0, details=[], run=SimpleNamespace(text=SimpleNamespace(token=str)))
    job.tokens = Growing()
    scored, told = Scored(job), []
    while len(told) < 6:
        told += (scored.news() or {})["content"]
    assert [one["token"] for one in told] == [str(number) for number in range(6)]
    assert [one["logprob"] for one in told] == [-float(number) for number in range(6)]


def test_stops_cut_at_the_first_of_them() -> None:
    assert cut("one two three", ("three", "two")) == "one "
    assert cut("one", ("four",)) == cut("one", ()) == "one"


@pytest.mark.parametrize(
    "text", [" A dog. A cat.\nmore", "\n\nΑΣ ΑΣΑ.", "naïve ...yes", "one STOP two", "STO STOP", "one.  STOP"]
)
def test_what_is_streamed_is_never_taken_back(text: str) -> None:
    """Every token is a byte; whatever was told of the first ones, the whole answer begins with it."""

    def clean(raw: str) -> str:
        lines = raw.strip().splitlines()
        return lines[0].rstrip(" .").lower() if lines else ""

    data = text.encode()
    run = SimpleNamespace(text=SimpleNamespace(decode=lambda ids: bytes(ids).decode(errors="replace")))
    job: Any = SimpleNamespace(run=run, clean=clean, stops=("STOP",), tokens=list(data))
    whole, told = content(job), ""
    for n in range(len(data)):
        job.tokens = list(data[:n])
        told = sure(job, told)
        assert whole.startswith(told), (told, whole)
    assert len(told) >= len(whole) - 9


def test_hosts_that_a_server_answers_to() -> None:
    assert "localhost" in (hosts_of("127.0.0.1", []) or [])
    assert hosts_of("0.0.0.0", []) is None
    assert hosts_of("0.0.0.0", ["a.example"]) == ["0.0.0.0", "a.example"]
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example")


def test_origins_are_read_as_browsers_write_them() -> None:
    listed = ["https://App.example/", "http://localhost:3000", "https://a.example:443", "http://[::1]:8080", "*"]
    assert parse_origins(listed) == [
        "https://app.example", "http://localhost:3000", "https://a.example", "http://[::1]:8080", "*"
    ]  # fmt: skip
    assert (b"access-control-allow-origin", b"*") in Origins(["*"]).headers_for(b"https://any.example")
    assert Origins().headers_for(b"https://any.example") == ()


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    metrics.count("requests_total", route="/health", status="200")
    metrics.observe("batch_rows", 3)
    lines = metrics.text().splitlines()
    assert 'perceptune_requests_total{route="/health",status="200"} 1.0' in lines
    assert 'perceptune_batch_rows_bucket{le="2.0"} 0.0' in lines
    assert 'perceptune_batch_rows_bucket{le="4.0"} 1.0' in lines
    assert "perceptune_batch_rows_count 1.0" in lines


def test_the_command_is_safe_by_default(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for words, said in (
        (["--host", "0.0.0.0"], "open to other machines"),
        (["--allow-remote-media"], "need both"),
        (["--allowed-media-domains", "a.example"], "need both"),
        (["--allowed-origins", "app.example"], "is no origin: scheme://host[:port]"),
        (["--allowed-origins", "https://a.example/path"], "is no origin"),
        (["--allowed-origins", "https://a.example,null"], "any page that hides"),
        (["--allowed-origins", "*"], "lets any page"),
        (["--api-key-file", str(tmp_path / "empty")], "an API key is"),
        (["--allowed-local-media-path", str(tmp_path / "none")], "is no folder"),
        (["--tokens", "0"], "`--tokens` must be more than 0"),
        ([], "is not a run folder"),
    ):
        assert cli(["serve", str(tmp_path / "no-run"), *words]) == 2
        assert said in capsys.readouterr().err


def test_limits_are_more_than_nothing() -> None:
    with pytest.raises(UserError, match="--body-mb"):
        Limits(body_mb=0)
