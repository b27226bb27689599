"""Tests the library on a GPU, with tiny models that it creates itself, and writes a report.

Each check compares with the CPU of the same machine if possible, and fails alone: the others still run.
"""

import os
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from perceptune.errors import UserError
from perceptune.evaluation.results import versions
from perceptune.models.build import BACKBONES
from perceptune.tools import gpu_trials, tiny_models
from perceptune.utils.atomic_io import write_json
from perceptune.utils.devices import default_device

REPORT = Path("perceptune-gpu.json")

STEPS = 6
# Errors of the library, torch or a driver; an error of this file itself ends all checks.
FAILURES = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OSError, UserError)

Check = dict[str, Any]
PrintFn = Callable[[str], None]


def check_gpu(report: Path = REPORT, say: PrintFn = print) -> list[Check]:
    """Run every check and write the report, a JSON file that can be sent; return the checks.

    Each is {name, state: ok | problem, found, seconds} with a `trace` if an error was raised. Raises `UserError`
    without a GPU.
    """
    device = default_device()
    if device.type != "cuda":
        raise UserError("doctor --gpu: torch finds no CUDA device here: `perceptune doctor` says what it does find")
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="perceptune-gpu-") as folder, _environment(Path(folder)):
        models = tiny_models.make_models(Path(folder) / "models")
        for name, check in _plan(models, Path(folder), device):
            checks.append(_tried(name, check))
            say(f"{'ok  ' if checks[-1]['state'] == 'ok' else '!!  '} {name:<28} {_line(checks[-1]['found'])}")
            _write(report, device, checks)  # after each check, as the driver may crash
    return checks


def _plan(models: Path, folder: Path, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the checks, the most informative first."""
    for backbone in BACKBONES:
        run = folder / f"{backbone}-run"
        recipe = tiny_models.recipe(models, backbone, run, steps=STEPS, save_every=2)
        yield f"{backbone}: float32", partial(gpu_trials.compare, recipe, device, "float32")
        yield f"{backbone}: bfloat16", partial(gpu_trials.compare, recipe, device, "bfloat16")
        yield f"{backbone}: autocast", partial(gpu_trials.compare, recipe, device, "float32", autocast=True)
        yield f"{backbone}: train", partial(gpu_trials.try_training, recipe, run)
        yield f"{backbone}: resume", partial(gpu_trials.try_resuming, recipe, run)
        yield f"{backbone}: answer", partial(gpu_trials.try_answering, run)
        yield f"{backbone}: evaluate", partial(gpu_trials.try_evaluating, run)
        if BACKBONES[backbone].can_rank:
            yield f"{backbone}: rank", partial(gpu_trials.try_ranking, run)
        yield f"{backbone}: memory", partial(gpu_trials.measure_memory, recipe, device)
        yield f"{backbone}: waits", partial(gpu_trials.count_waits, recipe, device)
    yield "matrix products", partial(gpu_trials.measure_speeds, device)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Use a temporary cache, so that the user's is not changed."""
    before = dict(os.environ)
    os.environ["PERCEPTUNE_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        del os.environ["PERCEPTUNE_CACHE"]
        os.environ.update(before)


def _tried(name: str, check: Callable[[], Any]) -> Check:
    start = time.monotonic()
    try:
        made = {"state": "ok", "found": check()}
    except FAILURES as error:
        trace = "" if isinstance(error, gpu_trials.CheckError) else traceback.format_exc()
        made = {"state": "problem", "found": f"{type(error).__name__.lstrip('_')}: {error}", "trace": trace}
    return {"name": name, **made, "seconds": round(time.monotonic() - start, 3)}


def _line(found: Any) -> str:
    """Format a check's findings in one line."""
    if not isinstance(found, Mapping):
        return str(found).splitlines()[0][:200]
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in found.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _write(report: Path, device: torch.device, checks: Sequence[Check]) -> None:
    tolerances = {**gpu_trials.TOLERANCES, "log-probability": gpu_trials.LOGPROB_TOLERANCE}
    write_json(report, {"machine": _machine(device), "tolerances": tolerances, "checks": list(checks)})


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(device), "capability": list(torch.cuda.get_device_capability(device)),
        "memory_gib": torch.cuda.mem_get_info(device)[1] / 2**30, "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda, "bfloat16": torch.cuda.is_bf16_supported(), "python": platform.python_version(),
        "system": platform.platform(), "versions": versions(),
    }  # fmt: skip
