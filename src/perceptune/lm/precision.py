"""Choice of the dtype in which a frozen LM is faster on this machine: the value of `auto` in a recipe.

Instruction sets are not enough: of two processors that both multiply bfloat16, one is twice as fast in it and the
other half as fast. So the linear maps of the LM's own shapes are timed in both dtypes, forward and backward, with the
kernels that training uses and the operations between them; the timings are stored in the cache folder.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.lm.kernels.packed_linear import pack
from perceptune.lm.kernels.short_attention import grouped_attention
from perceptune.utils.atomic_io import write_whole
from perceptune.utils.downloads import cache_dir

DTYPES = ("float32", "bfloat16")
GAIN = 1.05  # required speedup of bfloat16, which costs exactness
LEAST = 2**20  # multiplications per token: a smaller LM has nothing to gain, and its timing would be noise
WIDEST = 2048  # maximum rows and columns of a matrix that is timed; a larger one is cropped
BATCH, COLUMNS = 4, 32  # number of texts, and of tokens in each
BUDGET = 0.1  # seconds of measuring, after one warm-up run
ROUNDS = (4, 12)  # minimum, maximum
VERSION = 1  # of the stored timings
# This thread's CPU seconds, which other programs do not lengthen, unless the system counts them too coarsely.
_clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-4 else time.perf_counter


@dataclass(frozen=True)
class Products:
    """The LM's matrix products: its linear maps as (out, in) with their number, and the heads of its attention."""

    maps: tuple[tuple[tuple[int, int], int], ...]
    heads: int
    key_heads: int
    head_size: int

    @property
    def multiplications(self) -> int:
        """Multiplications per token in all layers, without attention and vocabulary."""
        return sum(rows * columns * number for (rows, columns), number in self.maps)


@dataclass(frozen=True)
class Choice:
    """A dtype and the reason for it."""

    dtype: str
    reason: str
    speedup: float | None = None  # seconds in float32 / seconds in bfloat16, if both were measured

    def slowness_of(self, dtype: str) -> float | None:
        """Return this dtype's time as a multiple of the other one's; None if unknown."""
        if self.speedup is None:
            return None
        return self.speedup if dtype == "float32" else 1 / self.speedup


def products_of(lm: nn.Module, config: Any) -> Products:
    """Return the products of an LM, which may be on the meta device."""
    head = cast(Any, lm).get_output_embeddings()
    shapes: Counter[tuple[int, int]] = Counter()
    for module in lm.modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            shapes[module.out_features, module.in_features] += 1
        elif type(module).__name__ == "Conv1D":  # GPT-2's: (in, out)
            rows, columns = cast(Tensor, module.weight).shape
            shapes[columns, rows] += 1
    heads = int(getattr(config, "num_attention_heads", 1))
    size = getattr(config, "head_dim", None) or max(int(getattr(config, "hidden_size", heads)) // heads, 1)
    shared = getattr(config, "num_key_value_heads", None) or heads
    return Products(tuple(sorted(shapes.items())), heads, int(shared), int(size))


def choose(products: Products, *, packed: bool, device: torch.device) -> Choice:
    """Choose the dtype for an LM on a device; on a CPU by measuring, or from an earlier measurement.

    `packed` = whether its weights are laid out for the CPU. float32 if bfloat16 does not run at all.
    """
    if not runs_bfloat16(device):
        return Choice("float32", f"bfloat16 does not run on this {device.type}")
    if device.type != "cpu":
        return Choice("bfloat16", f"this {device.type} computes in bfloat16")
    if products.multiplications < LEAST:
        return Choice("float32", "the LM is too small for its dtype to matter")
    seconds = seconds_here(products, packed=packed)
    speedup = seconds["float32"] / seconds["bfloat16"]
    dtype = "bfloat16" if speedup >= GAIN else "float32"
    return Choice(dtype, f"bfloat16 is {speedup:.2f} times as fast as float32 in this LM's products here", speedup)


def runs_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies in bfloat16 without emulation."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    try:
        x = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return float((x @ x)[0, 0]) == 2
    except (RuntimeError, TypeError):  # the backend has no such kernel or dtype
        return False


def seconds_here(products: Products, *, packed: bool) -> dict[str, float]:
    """Return the seconds of one pass in each dtype, from the cache folder if measured before."""
    described = json.dumps([VERSION, _machine(), packed, products.maps, products.heads, products.key_heads,
                            products.head_size])  # fmt: skip
    path = cache_dir() / "precision" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"
    remembered = _remembered(path)
    if remembered is not None:
        return remembered
    seconds = measure(products, packed=packed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [json.dumps({"seconds": seconds, "of": json.loads(described)}, indent=2).encode()])
    except OSError:
        pass  # if the cache folder is not writable, the next run measures again
    return seconds


def _remembered(path: Path) -> dict[str, float] | None:
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        found = {name: float(seconds[name]) for name in DTYPES}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: measure again
    return found if all(math.isfinite(value) and value > 0 for value in found.values()) else None


def _machine() -> list[Any]:
    """Return what the timings depend on beside the LM."""
    return [_processor(), torch.get_num_threads(), torch.__version__, os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()]


def _processor() -> str:
    """Return name and flags of the processor."""
    info, wanted = Path("/proc/cpuinfo"), ("model name", "flags", "Features", "CPU part")
    if info.is_file():
        first = info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        if found := [line for line in first if line.startswith(wanted)]:
            return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def measure(products: Products, *, packed: bool) -> dict[str, float]:
    """Measure seconds of one pass in each dtype: each part's fastest run, in alternation, times its occurrences.

    CPU seconds, and the fastest of many short runs: the time on a machine that runs nothing else.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        parts = {name: _parts(products, getattr(torch, name), packed=packed) for name in DTYPES}
        best = {name: [math.inf] * len(parts[name]) for name in DTYPES}
        for runs in parts.values():
            for run, _ in runs:
                run()
        start, rounds = _clock(), 0
        while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and _clock() - start < BUDGET):
            for index in range(len(parts[DTYPES[0]])):
                for name in DTYPES:
                    best[name][index] = min(best[name][index], _timed(parts[name][index][0]))
            rounds += 1
    return {
        name: sum(seconds * number for seconds, (_, number) in zip(best[name], parts[name], strict=True))
        for name in DTYPES
    }


def _timed(run: Callable[[], None]) -> float:
    start = _clock()
    run()
    return _clock() - start


def _parts(products: Products, dtype: torch.dtype, *, packed: bool) -> list[tuple[Callable[[], None], float]]:
    """Return what is run in a dtype, and how often it occurs in the LM."""
    shapes: Counter[tuple[int, int]] = Counter()
    for (rows, columns), number in products.maps:
        shapes[min(rows, WIDEST), min(columns, WIDEST)] += number
    parts: list[tuple[Callable[[], None], float]] = [
        (_linear(rows, columns, dtype, packed=packed), number) for (rows, columns), number in shapes.items()
    ]
    blocks = max(sum(shapes.values()) / 6, 1)  # a block has four to seven maps
    return [*parts, (_attention(products, dtype), blocks), (_elementwise(products, dtype), blocks)]


def _linear(rows: int, columns: int, dtype: torch.dtype, *, packed: bool) -> Callable[[], None]:
    module = nn.Linear(columns, rows, bias=False, dtype=dtype).requires_grad_(False)
    if packed:
        pack([module], 2 * module.weight.nbytes // 2**20 + 1)
    return _passes(module, torch.randn(BATCH, COLUMNS, columns, dtype=dtype))


def _attention(products: Products, dtype: torch.dtype) -> Callable[[], None]:
    shapes = [(BATCH, heads, COLUMNS, products.head_size) for heads in (products.heads, *[products.key_heads] * 2)]
    given = [torch.randn(shape, dtype=dtype) for shape in shapes]
    mask = torch.ones(COLUMNS, COLUMNS, dtype=torch.bool).tril().expand(BATCH, 1, COLUMNS, COLUMNS)
    return _passes(partial(grouped_attention, mask=mask, scale=products.head_size**-0.5), *given)


def _elementwise(products: Products, dtype: torch.dtype) -> Callable[[], None]:
    """Return a run of activations, gates and residual sums, as wide as the widest map."""
    width = min(max(max(shape) for shape, _ in products.maps), WIDEST)
    gate, up = (torch.randn(BATCH, COLUMNS, width, dtype=dtype) for _ in range(2))
    return _passes(lambda a, b: nn.functional.silu(a) * b + a, gate, up)


def _passes(function: Callable[..., Tensor], *given: Tensor) -> Callable[[], None]:
    """Return a run of one forward and one backward pass."""
    upstream = torch.ones_like(function(*given))

    def run() -> None:
        inputs = [one.detach().requires_grad_() for one in given]
        function(*inputs).backward(upstream)

    return run
