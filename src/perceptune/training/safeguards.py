"""What keeps a training from losing work: finite losses, interruptions at the end of a step, hints on memory."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

import torch

from perceptune.config.schema import TrainConfig
from perceptune.errors import UserError


def require_finite(loss: float, norm: float, step: int, saved: str) -> None:
    """Raises `UserError` before a loss or a gradient (of this norm) that is not a number can spoil the weights."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
        raise UserError(
            f"the {what} at step {step}: training stopped before the update. {saved} "
            "Lower `train.lr`, set `train.clip: 1.0`, or use `train.precision: float32`"
        )


ECHO = 5.0  # seconds


class Interruption:
    """Set by the first Ctrl-C."""

    wanted = False
    since = -math.inf


@contextlib.contextmanager
def interruptions() -> Iterator[Interruption]:
    """Ctrl-C ends the loop after the current step; a second one ends it at once.

    A launcher hands on the Ctrl-C that the terminal has sent to its processes already: that is not a second one.
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
    except ValueError:  # not in the main thread: whoever called us owns the signals
        yield interruption
        return
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def out_of_memory_hint(config: TrainConfig) -> Iterator[None]:
    """An out-of-memory error says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in text:
            raise
        key = "batch_size" if config.batch_tokens is None else "batch_tokens"
        size, accumulate = getattr(config, key), config.accumulate
        raise UserError(
            f"out of memory: lower `train.{key}` (now {size}) and raise `train.accumulate` (now {accumulate}) "
            "by the same factor, or set `train.gradient_checkpointing: true` or `train.precision: bfloat16`"
        ) from error
