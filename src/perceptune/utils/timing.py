"""Timing: contenders take turns, so that noise of the machine hits all alike; medians of several rounds."""

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
    """No preparation."""


@dataclass
class Contender:
    """One row of the table. `run` is timed, `prepare` runs before it, outside the clock."""

    name: str  # such as `ours epalm cached bf16`
    kind: str  # `train`, `generate`, ...
    run: Callable[[], Any]
    prepare: Callable[[], Any] = nothing
    warm_up: Callable[[], Any] | None = None  # None: `run`, twice
    samples: int = 0  # of what is measured; 0: the row is not about samples
    times: int = 1  # how often `run` does what is measured
    flops: int = 0  # of what is measured


def measure(contenders: Sequence[Contender], rounds: int, label: str = "bench") -> list[dict[str, Any]]:
    """One row per contender: median, least and all seconds of `rounds` runs, taken in turns after a warm-up.

    Processor seconds, over all threads, stand beside them: other programs do not lengthen those.
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
    """What the figures depend on."""
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
