"""The environment variables that a launcher such as `accelerate launch` sets, and the wait for the other processes."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from perceptune.errors import UserError

JOIN_TIMEOUT = 600.0  # seconds; torchrun's own default
NOTICE = 3.0  # seconds of waiting after which the missing ranks are printed
POLL = 0.1
_ADVICE = "start them by `accelerate launch`, or, if there are no others, run `unset WORLD_SIZE RANK LOCAL_RANK` first"


@dataclass(frozen=True)
class Launch:
    """The rank of this process, the number of processes and the address of their rendezvous."""

    rank: int = 0
    size: int = 1
    address: str = ""
    port: int = 0

    @property
    def place(self) -> str:
        """Address and port of the rendezvous, for a message."""
        return f"{self.address}:{self.port}"


def read_launch(environment: Mapping[str, str] = os.environ, *, meeting: bool = True) -> Launch:
    """Read the launch from the environment variables; without WORLD_SIZE, a single process.

    With `meeting`, several processes also need the variables of the rendezvous. Raises `UserError` for variables that
    are missing or invalid.
    """
    size = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", 0)
    local = _number(environment, "LOCAL_RANK", 0)
    if not environment.get("WORLD_SIZE"):
        if rank or environment.get("LOCAL_RANK"):
            given = f"RANK={rank}" if rank else f"LOCAL_RANK={local}"
            raise UserError(f"{given} says that several processes work together, but WORLD_SIZE is not set: {_ADVICE}")
        return Launch()
    for name, value in (("RANK", rank), ("LOCAL_RANK", local)):
        if value >= size:
            raise UserError(f"{name}={value}, but WORLD_SIZE={size}: ranks count from 0 to {size - 1}; {_ADVICE}")
    if size == 1 and not environment.get("LOCAL_RANK"):
        return Launch()
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT") if meeting else ("RANK",)
    if missing := [name for name in needed if not environment.get(name)]:
        raise UserError(
            f"WORLD_SIZE={size} says that {size} processes work together, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: {_ADVICE}"
        )
    if not meeting:
        return Launch(rank, size)
    return Launch(rank, size, environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", 1, 65535))


def join(launch: Launch, timeout: float = JOIN_TIMEOUT, *, notice: float = NOTICE) -> Any:
    """Wait until every process has joined; return their store, which must be kept while they communicate.

    After `notice` seconds the missing ranks are printed on stderr. Raises `UserError` after `timeout` seconds.
    """
    waiting = _Waiting(launch, timeout)
    timer = threading.Timer(min(notice, timeout), lambda: print(waiting.told(), file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        return waiting.wait()
    finally:
        timer.cancel()


class _Waiting:
    """One process's wait for the others."""

    def __init__(self, launch: Launch, timeout: float) -> None:
        self.launch, self.timeout, self.deadline = launch, timeout, time.monotonic() + timeout
        self.trouble = ""  # why the rendezvous cannot be reached
        self.missing = [rank for rank in range(launch.size) if rank != launch.rank]

    def told(self) -> str:
        """Return a message with the missing ranks, the reason and the timeout."""
        return (
            f"process {self.launch.rank} waits {self._found()}; it gives up after {self.timeout:g} s (--join-timeout)"
        )

    def _found(self) -> str:
        names = ", ".join(map(str, self.missing[:8])) + (", ..." if len(self.missing) > 8 else "")
        size, there = self.launch.size, self.launch.size - len(self.missing)
        return f"at {self.launch.place} for rank {names}: {there} of {size} are there (WORLD_SIZE={size}{self.trouble})"

    def wait(self) -> Any:
        """Return the store once all processes have joined."""
        distributed: Any = import_module("torch.distributed")
        hosts = self.launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if hosts:
            self._try(lambda: socket.getaddrinfo(self.launch.address, self.launch.port))
        else:  # first by a plain socket, because torch prints every attempt
            self._try(lambda: socket.create_connection((self.launch.address, self.launch.port), timeout=2).close())
        try:
            store = distributed.TCPStore(
                self.launch.address, self.launch.port, self.launch.size, is_master=hosts, wait_for_workers=False,
                timeout=timedelta(seconds=max(self.deadline - time.monotonic(), 1)), multi_tenant=hosts,
            )  # fmt: skip
            store.set(_key(self.launch.rank), "there")
            while self.missing:
                self.missing = [rank for rank in self.missing if not store.check([_key(rank)])]
                self._pause()
        except RuntimeError as error:  # of torch's sockets: a port in use, a host that ended meanwhile
            raise UserError(f"cannot meet the other processes at {self.launch.place}: {error}; {_ADVICE}") from error
        return store

    def _try(self, reach: Callable[[], object]) -> None:
        """Retry `reach` while the host's name cannot be resolved or nothing listens there."""
        while True:
            try:
                reach()
            except OSError as error:
                self.trouble = f", {error.strerror}"
                self._pause()
            else:
                self.trouble = ""
                return

    def _pause(self) -> None:
        if not self.missing:
            return
        if time.monotonic() > self.deadline:
            waited = f"process {self.launch.rank} waited {self.timeout:g} s (--join-timeout) {self._found()}"
            raise UserError(f"{waited}; {_ADVICE}")
        time.sleep(POLL)


def _key(rank: int) -> str:
    return f"perceptune/joined/{rank}"


def _number(environment: Mapping[str, str], name: str, low: int, high: int | None = None) -> int:
    """Return a variable's number, `low` if the variable is not set."""
    text = environment.get(name)
    if not text:
        return low
    if not text.isascii() or not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
        range_ = f"from {low} to {high}" if high is not None else f"from {low} up"
        raise UserError(f"the environment variable {name} is `{text}`, not a whole number {range_}; {_ADVICE}")
    return int(text)
