"""Child processes that are forks of the tests' own: killed like any other, but with everything imported already.

A new Python costs four seconds of processor time before it does anything. Whatever is patched here is patched in the
fork, too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


class Fork:
    """Runs `work` in a fork, which ends with the number that it returns; `out` is where its words go."""

    def __init__(self, work: Callable[[], object], out: Path | None = None) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(work, out))
        with warnings.catch_warnings():  # of threads: pytest-xdist has one, and it holds nothing
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """How it has ended, a signal as its negative number; None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, seconds: float = 600) -> int:
        """The same, once it has ended."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise TimeoutError(f"the fork had not ended after {seconds} s")
        return code

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                self.send(signal.SIGKILL)
        self._process.join()


def _run(work: Callable[[], object], out: Path | None) -> None:
    code = 1
    try:
        if out is not None:
            file = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        import torch

        torch.set_num_threads(1)  # OpenMP's threads have not come along
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ended = work()
        code = ended if isinstance(ended, int) else 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would say it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
