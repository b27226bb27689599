"""Timing in interleaved rounds, so that noise of the machine affects all contenders alike; medians of the rounds."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceptune.utils.run_log import progress


def nothing() -> None:
    """Do nothing: the default of `Contender.prepare`."""


@dataclass
class Contender:
    """One row of the table. `run` is timed; `prepare` runs before it, untimed."""

    name: str  # such as `ours epalm cached bf16`
    kind: str  # `train`, `generate`, ...
    run: Callable[[], Any]
    prepare: Callable[[], Any] = nothing
    warm_up: Callable[[], Any] | None = None  # None: `run`, twice
    samples: int = 0  # per repetition; 0: without samples per second
    times: int = 1  # repetitions inside one `run`
    flops: int = 0  # of one repetition


def measure(contenders: Sequence[Contender], rounds: int, label: str = "bench") -> list[dict[str, Any]]:
    """Return a row per contender: median, minimum and all seconds of `rounds` interleaved runs after a warm-up.

    The median of processor seconds, over all threads, is included because other programs do not affect it.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    processor: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    with progress((rounds + 1) * len(contenders), label) as bar:
        for contender in contenders:
            _warm(contender)
            bar.advance(note=contender.name)
        for _ in range(rounds):
            for contender in contenders:
                contender.prepare()
                start, spent = time.perf_counter(), time.process_time()
                contender.run()
                processor[contender.name].append((time.process_time() - spent) / contender.times)
                seconds[contender.name].append((time.perf_counter() - start) / contender.times)
                bar.advance(note=contender.name)
    return [_row(contender, seconds[contender.name], processor[contender.name]) for contender in contenders]


def _warm(contender: Contender) -> None:
    if contender.warm_up is not None:
        contender.warm_up()
        return
    for _ in range(2):
        contender.prepare()
        contender.run()


def _row(contender: Contender, seconds: list[float], processor: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    row = {"name": contender.name, "kind": contender.kind, "median_s": median, "min_s": min(seconds),
           "median_cpu_s": statistics.median(processor)}  # fmt: skip
    if contender.samples:
        row["samples_per_s"] = contender.samples / median
    if contender.flops:
        row["matmul_gflops"] = contender.flops / median / 1e9
    return {**row, "seconds": seconds}


def machine() -> dict[str, Any]:
    """Return the hardware and versions that the figures depend on."""
    import transformers

    return {
        "cpu": _cpu_name(), "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }  # fmt: skip


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
