"""How a server begins: it listens while it loads, and what keeps it from answering is one error at the start."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import perceptune
import runs as dwarf_runs
from forks import Fork
from perceptune.cli.main import run as cli
from perceptune.models.run_folder import METHOD, save_run
from perceptune.serving import media_worker_pool
from perceptune.serving.app import Access, make_app
from perceptune.serving.examples import Example
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from perceptune.serving.server import listening, make_server
from servers import KEY, Served, load_runs


@pytest.fixture
def folder(dwarfs: Path, tmp_path: Path) -> Path:
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(tmp_path / "one", perceptune.build(dwarf_runs.recipe(dwarfs, method=method)))
    return tmp_path / "one"


@contextmanager
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_it_listens_while_it_loads(folder: Path) -> None:
    """503 to whoever asks for an answer, `loading` at /health; then everything as always."""
    go_on, told = threading.Event(), []

    def load() -> Runs:
        assert go_on.wait(30)
        return load_runs([str(folder)], Limits())

    app = make_app(load, Limits(), Access(key=KEY), decoders=1, ended=told.append)
    with listening("127.0.0.1", 0) as bound:
        running = make_server(app, Limits(), "127.0.0.1", 0)
        running.config.log_level = "critical"
        running.config.configure_logging()
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        server = Served(bound.getsockname()[1], app)
        try:
            assert server.request("GET", "/health", key=None) == (503, {"status": "loading"})
            for status, answer in (server.chat(), server.request("GET", "/v1/models")):
                assert (status, answer["error"]["code"]) == (503, "loading")
            assert server.request("GET", "/version")[0] == 200
            assert server.request("GET", "/v1/models", key=None)[0] == 401
            assert told == []
            go_on.set()
            end = time.monotonic() + 60
            while server.request("GET", "/health", key=None)[0] != 200 and time.monotonic() < end:
                time.sleep(0.05)
            assert server.request("GET", "/health", key=None) == (200, {"status": "ok"})
            assert server.chat()[0] == 200
            assert told == [None]
        finally:
            go_on.set()
            running.should_exit = True
            thread.join(20)


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with taken() as port:
        assert cli(["serve", str(folder), "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert f"--port {port}: cannot be listened to" in said.err
    assert said.err.count("\n") == 1
    assert cli(["serve", str(folder), "--port", "70000"]) == 2
    assert cli(["serve", str(folder), "--host", "192.0.2.1", "--no-api-key"]) == 2  # nobody's
    assert "--host 192.0.2.1 --port 8000: cannot be listened to" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["run.yaml", "meta.json"])
def test_a_folder_that_cannot_be_read(file: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found out before anything is loaded or listened to."""
    (folder / file).write_bytes(b"\xff{")
    assert cli(["serve", str(folder)]) == 2
    said = capsys.readouterr()
    assert str(folder) in said.err
    assert "loading" not in said.out


def test_what_goes_wrong_while_it_loads_is_one_error(folder: Path) -> None:
    """In a process of its own, which ends."""
    (folder / METHOD).write_bytes((folder / METHOD).read_bytes()[:-100])
    with taken() as port:
        pass
    assert Fork(lambda: cli(["serve", str(folder), "--port", str(port)]), folder.parent / "said").wait() == 2
    said = (folder.parent / "said").read_text()
    assert METHOD in said
    assert "Traceback" not in said
    assert "serving" not in said


def test_whatever_goes_wrong_with_examples_is_told(folder: Path) -> None:
    """Or it would say for ever that it is loading."""
    told: list[BaseException | None] = []

    def broken(_: Runs) -> dict[str, list[Example]]:
        raise ValueError("of an adapter")

    async def run() -> None:
        app = make_app(lambda: load_runs([str(folder)], Limits()), Limits(), Access(examples=broken), ended=told.append)
        async with app.router.lifespan_context(app):
            end = time.monotonic() + 60
            while not told and time.monotonic() < end:
                await asyncio.sleep(0.02)

    asyncio.run(run())
    assert [str(error) for error in told] == ["of an adapter"]


def test_decoders_that_do_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("perceptune.no_such_module", "this"):  # ends at once; says something else
        monkeypatch.setattr(media_worker_pool, "_MODULE", module)
        with taken() as port:
            pass
        assert cli(["serve", str(folder), "--port", str(port)]) == 2
        assert "the process that decodes media does not start" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(media_worker_pool.sys, "executable", "/no/such/python")
    with taken() as port:
        pass
    assert cli(["serve", str(folder), "--port", str(port)]) == 2
    assert "/no/such/python" in capsys.readouterr().err


def test_a_key_file_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["serve", str(folder), "--api-key-file", str(folder / "none")]) == 2
    assert "--api-key-file: `" in capsys.readouterr().err
