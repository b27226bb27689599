"""What a launcher's environment variables say, and the wait for other processes that may not be there."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from perceptune.errors import UserError
from perceptune.utils import run_log
from perceptune.utils.launch_environment import Launch, join, read_launch
from perceptune.utils.terminal import print_note

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in WHOLE.items() if name not in names}


@pytest.mark.parametrize("environment", [{}, {"RANK": "0"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_nothing_or_one_is_this_process_alone(environment: dict[str, str]) -> None:
    assert read_launch(environment) == Launch()


def test_a_launcher_is_understood() -> None:
    assert read_launch(WHOLE) == Launch(1, 2, "127.0.0.1", 29511)
    assert read_launch({"WORLD_SIZE": "3", "RANK": "2"}, meeting=False) == Launch(2, 3)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (without("MASTER_ADDR"), "WORLD_SIZE=2 says that 2 processes .* but MASTER_ADDR is not set"),
        (without("MASTER_ADDR", "MASTER_PORT"), "but MASTER_ADDR and MASTER_PORT are not set"),
        (without("RANK"), "but RANK is not set"),
        (without("WORLD_SIZE"), "RANK=1 says .* but WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 says .* but WORLD_SIZE is not set"),
        (WHOLE | {"RANK": "2"}, "RANK=2, but WORLD_SIZE=2: ranks count from 0 to 1"),
        (WHOLE | {"LOCAL_RANK": "7"}, "LOCAL_RANK=7, but WORLD_SIZE=2"),
        (WHOLE | {"RANK": "-1"}, "RANK is `-1`, not a whole number from 0 up"),
        (WHOLE | {"WORLD_SIZE": "two"}, "WORLD_SIZE is `two`, not a whole number from 1 up"),
        (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE is `0`, not a whole number from 1 up"),
        (WHOLE | {"WORLD_SIZE": "2.0"}, "WORLD_SIZE is `2.0`"),
        (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT is `http`, not a whole number from 1 to 65535"),
        (WHOLE | {"MASTER_PORT": "70000"}, "MASTER_PORT is `70000`"),
    ],
)
def test_what_makes_no_sense_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.*(accelerate launch|unset WORLD_SIZE)"):
        read_launch(environment)


def test_a_rank_that_was_left_set_silences_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run_log.is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not run_log.is_main_process()
    print_note("what the data was taken for")
    assert capsys.readouterr().err == ""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_it_is_said_who_is_waited_for_and_when_that_is_over(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"waited 0.8 s .* 127.0.0.1:{port} .* 1 of 2 are there.*unset WORLD_SIZE"):
        join(Launch(rank, 2, "127.0.0.1", port), timeout=0.8, notice=0.3)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"process {rank} waits at 127.0.0.1:{port} for rank {1 - rank}: 1 of 2 are there" in said[0]
    assert "--join-timeout" in said[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_is_not_known_is_the_reason(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"at nowhere:29511 .*Name or service not known"):
        join(Launch(rank, 2, "nowhere", 29511), timeout=0.3)


def test_processes_meet_whoever_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    port, stores = free_port(), dict[int, Any]()

    def come(rank: int) -> None:
        stores[rank] = join(Launch(rank, 2, "127.0.0.1", port), timeout=60, notice=50)

    first = threading.Thread(target=come, args=(1,))
    first.start()
    come(0)
    first.join(60)
    assert sorted(stores) == [0, 1]
    assert capsys.readouterr().err == ""


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"cannot meet the other processes at 127.0.0.1:{port}"):
            join(Launch(0, 2, "127.0.0.1", port), timeout=1)
