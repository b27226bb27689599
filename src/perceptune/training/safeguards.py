"""Protection of a training's progress: finite losses, interruption at the end of a step, hints on memory."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

import torch

from perceptune.config.training import TrainConfig
from perceptune.errors import UserError

ECHO = 5.0  # seconds


class Interruption:
    """Flag set by the first Ctrl-C."""

    wanted = False
    since = -math.inf


@contextlib.contextmanager
def interruptions() -> Iterator[Interruption]:
    """Stop the loop after the current step at the first Ctrl-C, and at once at the second.

    A launcher forwards the Ctrl-C that the terminal has already sent to its processes: that is not a second one.
    """
    interruption = Interruption()
    echo = ECHO if "LOCAL_RANK" in os.environ else 0.0

    def on_signal(_: int, __: FrameType | None) -> None:
        if not interruption.wanted:
            interruption.wanted, interruption.since = True, time.monotonic()
        elif time.monotonic() - interruption.since > echo:
            raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not in the main thread: signals belong to the caller
        yield interruption
        return
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def out_of_memory_hint(config: TrainConfig) -> Iterator[None]:
    """Convert an out-of-memory error into one that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        raise explain_out_of_memory(error, config) from error


def explain_out_of_memory(error: Exception, config: TrainConfig) -> Exception:
    """Return a `UserError` that names the settings to lower if memory ran out; any other error as it is."""
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not is_memory and not (isinstance(error, RuntimeError) and "allocate memory" in str(error).lower()):
        return error
    key = "batch_size" if config.batch_tokens is None else "batch_tokens"
    size, accumulate = getattr(config, key), config.accumulate
    return UserError(
        f"out of memory: lower `train.{key}` (now {size}) and raise `train.accumulate` (now {accumulate}) "
        "by the same factor, or set `train.gradient_checkpointing: true` or `train.precision: bfloat16`"
    )
