"""The checks of `doctor --gpu`: tiny models on a GPU against the CPU of the same machine.

Each function returns its findings, or raises: `CheckError` if a difference exceeds rounding.
"""

import os
import signal
import threading
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptune.data.build_task import make_task
from perceptune.evaluation import evaluate
from perceptune.models.base import AdaptedModel
from perceptune.models.build import build
from perceptune.models.run_folder import METHOD, load, read_tensors
from perceptune.tools import tiny_models
from perceptune.training import trainer
from perceptune.types import Decoding, Sample
from perceptune.utils.run_log import LOG, read_log

CPU = torch.device("cpu")
# Relative differences from the CPU's float32 within rounding: of the loss, and of all gradients together. In
# bfloat16 a multiple of the CPU's own bfloat16 difference is allowed, too, as it depends on the model.
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (5e-2, 1e-1)}
TIMES = 3
LOGPROB_TOLERANCE = 1e-3  # of a log-probability in float32
SIZE = 4096  # of the matrices that are multiplied


class CheckError(RuntimeError):
    """A failed check."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(otherwise)


def compare(recipe: Mapping[str, Any], device: torch.device, dtype: str, *, autocast: bool = False) -> dict[str, Any]:
    """Compare loss and gradients of one batch on the GPU with the CPU's in float32."""
    wanted = _gradients(_built(recipe, CPU))
    most = TOLERANCES["bfloat16" if autocast else dtype]
    if dtype == "bfloat16" or autocast:
        rounding = _off(_gradients(_built(recipe, CPU, "bfloat16")), wanted)
        most = max(most[0], TIMES * rounding[0]), max(most[1], TIMES * rounding[1])
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        found = _gradients(_built(recipe, device, dtype))
    off = _off(found, wanted)
    values = {"loss": found[0], "loss_on_cpu": wanted[0], "loss_off": off[0], "gradients_off": off[1], "allowed": most}
    _require(off[0] <= most[0] and off[1] <= most[1], f"further from the CPU than rounding explains: {values}")
    return values


def _off(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> tuple[float, float]:
    """Return the relative differences of the loss and of the gradients."""
    loss = abs(found[0] - wanted[0]) / abs(wanted[0])
    return loss, float((found[1] - wanted[1]).norm() / wanted[1].norm())


def _built(recipe: Mapping[str, Any], device: torch.device, dtype: str = "float32") -> AdaptedModel:
    """Build the model on a device, set up for training."""
    model = build(dict(recipe), dtype=dtype, ready=False)
    model.to(device)
    model.setup()
    return model


def _gradients(model: AdaptedModel) -> tuple[float, Tensor]:
    """Return the loss of a batch, and all gradients in one vector."""
    loss, _ = model.loss(model.collate(_samples(model)))
    loss.backward()
    given = [p.grad.flatten() for p in model.method.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(given).float().cpu()


def try_training(recipe: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Train; raises for a loss that is not finite."""
    result = trainer.train(dict(recipe), run)
    losses = [row["loss"] for row in read_log(run) if row["event"] == "step"]
    return {"losses": losses, "seconds": result.seconds}


def try_resuming(recipe: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Train the same, interrupted as by Ctrl-C after the second step, and resume."""
    again = run.with_name(f"{run.name}-resumed")
    with _interrupted_after(again, 2):
        stopped = trainer.train(dict(recipe), again)
    trainer.train(dict(recipe), again, resume=True)
    whole, parts = read_tensors(run / METHOD), read_tensors(again / METHOD)
    # The largest difference, relative to the largest number.
    off = max(float((parts[n] - t).abs().max() / t.abs().max().clamp_min(1e-6)) for n, t in whole.items())
    _require(off <= TOLERANCES["float32"][1], f"the resumed run differs by {off:.1e}")
    return {"stopped_at": stopped.steps, "off": off, "bit_equal": all(torch.equal(parts[n], whole[n]) for n in whole)}


def try_answering(run: Path) -> dict[str, Any]:
    """Compare greedy and beam answers with the CPU's, sampled ones with a second run; count those equal alone."""
    there, here = load(run), load(run, device="cpu")
    samples = _samples(here)
    found: dict[str, Any] = {}
    for name, decoding in (("greedy", Decoding(max_new_tokens=6)), ("beams", Decoding(max_new_tokens=6, beams=3))):
        pairs = list(zip(_said(there, samples, decoding), _said(here, samples, decoding), strict=True))
        found[name] = f"{sum(a == b for a, b in pairs)} of {len(pairs)} as on the CPU"
        _require(all(a == b for a, b in pairs), f"{name} answers differ from the CPU's: {pairs}")
    drawn = Decoding(max_new_tokens=6, sample=True, top_p=0.9)
    together = _said(there, samples, drawn)
    _require(together == _said(there, samples, drawn), "answers drawn twice with one seed differ")
    alone = [_said(there, [sample], drawn)[0] for sample in samples]
    found["drawn"] = f"{sum(a == b for a, b in zip(together, alone, strict=True))} of {len(alone)} as alone"
    return found


def try_evaluating(run: Path) -> dict[str, Any]:
    results = evaluate.evaluate(run)
    return {key: value for key, value in results.items() if isinstance(value, int | float)}


def try_ranking(run: Path) -> dict[str, Any]:
    """Compare log-probabilities of choices with the CPU's."""
    there, here = load(run), load(run, device="cpu")
    samples = _samples(here)
    choices = [list(tiny_models.COLORS)] * len(samples)
    found, wanted = (torch.tensor(model.rank(samples, choices)) for model in (there, here))
    off = float((found - wanted).abs().max())
    _require(off <= LOGPROB_TOLERANCE, f"log-probabilities differ by {off:.1e}")
    return {"off": off}


def measure_memory(recipe: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Measure megabytes of the model, of a step at its peak, and left after it."""
    before = torch.cuda.memory_allocated(device)
    model = _built(recipe, device)
    weights = torch.cuda.memory_allocated(device) - before
    torch.cuda.reset_peak_memory_stats(device)
    _gradients(model)
    peak = torch.cuda.max_memory_allocated(device) - before
    del model
    torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated(device) - before
    return {"weights": weights / 2**20, "peak": peak / 2**20, "left": left / 2**20}


def count_waits(recipe: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Count torch's synchronisation warnings in a loss with its gradients, and in answers of two lengths."""
    model = _built(recipe, device)
    model.eval()
    samples = _samples(model)
    batch = model.collate(samples)

    def learn() -> None:
        model.loss(batch)[0].backward()

    learn()  # one-time initialisation
    step = _counted(learn)
    answers = {n: _counted(partial(_said, model, samples, Decoding(max_new_tokens=n))) for n in (2, 6)}
    return {"loss_and_gradients": step, "answers_of_2_tokens": answers[2], "answers_of_6_tokens": answers[6]}


def _counted(compute: Callable[[], Any]) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def measure_speeds(device: torch.device) -> dict[str, Any]:
    """Measure TFLOPS of a square matrix product by dtype: whether float32 is slow here, and bfloat16's gain."""
    size, speeds = SIZE, {}
    for name in ("float32", "bfloat16"):
        a = torch.randn(size, size, device=device, dtype=getattr(torch, name))
        seconds = min(timeit.repeat(partial(_multiply, a, device), number=1, repeat=5))
        speeds[name] = 2 * size**3 / seconds / 1e12
    return {"tflops": speeds, "float32_matmul_precision": torch.get_float32_matmul_precision()}


def _multiply(a: Tensor, device: torch.device) -> None:
    a @ a
    torch.cuda.synchronize(device)


def _samples(model: AdaptedModel) -> Sequence[Sample]:
    """Return four questions of two lengths on images."""
    return list(make_task(model.recipe).samples("train"))[:4]


@torch.no_grad()
def _said(model: AdaptedModel, samples: Sequence[Sample], decoding: Decoding) -> list[list[int]]:
    return model.generate(samples, decoding)


@contextmanager
def _interrupted_after(run: Path, steps: int) -> Iterator[None]:
    """Send this process the signal of Ctrl-C once a run's log has this many steps."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if (run / LOG).is_file() and sum(row["event"] == "step" for row in read_log(run)) >= steps:
                os.kill(os.getpid(), signal.SIGINT)
                return

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a signal that arrives after the training is ignored
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)
