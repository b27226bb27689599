"""What the pretend GPU is taken through, in the process that has it: each function returns what was seen on the way."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch

import device_ledger
import perceptune
from perceptune.models.base import AdaptedModel
from perceptune.models.run_folder import load
from perceptune.training.trainer import Trainer
from perceptune.types import Decoding, Sample

Waits = Counter[tuple[str, str]]
DECODING = {
    "greedy": Decoding(max_new_tokens=5),
    "sampled": Decoding(max_new_tokens=5, sample=True, top_p=0.9, temperature=0.7),
    "beams": Decoding(max_new_tokens=5, beams=2),
    "penalised": Decoding(max_new_tokens=3, repetition_penalty=1.2),  # transformers' own loop
}


@dataclass
class Seen:
    """What a real GPU would have refused, and how often the host waited: in each training step, in each part."""

    faults: list[str] = field(default_factory=list)
    without_kernel: list[str] = field(default_factory=list)
    steps: list[Waits] = field(default_factory=list)
    parts: dict[str, Waits] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        with device_ledger.counted() as waits:
            result = compute()
        self.parts[name] = waits
        return result


@contextmanager
def watched() -> Iterator[Seen]:
    seen = Seen()
    device_ledger.ledger.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield seen
    seen.faults, seen.without_kernel = list(device_ledger.ledger.faults), device_ledger.without_kernel()


@contextmanager
def steps_counted(seen: Seen, stop_at: int | None = None) -> Iterator[None]:
    """Each training step's waits; before step `stop_at` the training is torn down."""
    original = Trainer._step

    @wraps(original)
    def step(self: Trainer, *given: Any) -> bool:
        if self.state.step == stop_at:
            raise ConnectionAbortedError
        with device_ledger.counted() as waits:
            result = original(self, *given)
        seen.steps.append(waits)
        return result

    Trainer._step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer._step = original  # type: ignore[method-assign]


def samples(data: Path, count: int = 4) -> list[Sample]:
    """Questions of two lengths on pictures."""
    questions = ("color?", "what color is this picture?")
    return [Sample(str(i), {"image": data / f"train{i}.png"}, questions[i % 2], targets=("red",)) for i in range(count)]


def train_and_resume(recipe: Mapping[str, Any], run: Path, *, twice: bool = False) -> Seen:
    """A training that is torn down, and resumed; with `twice` also one that is not, to compare with."""
    with watched() as seen:
        try:
            with steps_counted(seen, stop_at=recipe["train"]["steps"] - 1):
                perceptune.train(dict(recipe), run)
        except ConnectionAbortedError:
            pass
        with steps_counted(seen):
            perceptune.train(dict(recipe), run, resume=True)
        if twice:
            perceptune.train(dict(recipe), run.with_name(f"{run.name}-whole"))
    return seen


def answer(run: Path, data: Path, ways: Sequence[str]) -> Seen:
    """Answers in several ways, and what a method of slots can do beside: rank, give log-probabilities."""
    with watched() as seen:
        model = load(run)
        seen.found["device"] = str(model.device)
        rows = samples(data)
        model.encode(rows)
        for way in ways:
            seen.found[way] = seen.part(way, lambda way=way: _said(model, rows, DECODING[way]))
            fewer = replace(DECODING[way], max_new_tokens=1)
            seen.part(f"{way}, one token", lambda fewer=fewer: _said(model, rows, fewer))
        if model.recipe.backbone == "splice":
            mixed = [*rows[:2], Sample("x", {}, "color?", targets=("red",))]
            loss, _ = model.loss(model.collate(mixed))
            loss.backward()
            seen.found["text only"] = _said(model, mixed, DECODING["greedy"])
            choices = [["red", "blue", "green"]] * len(rows)
            seen.found["ranked"] = seen.part("rank", lambda: model.rank(rows, choices))
            seen.found["log-probabilities"] = model.token_logprobs(rows)
    return seen


def _said(model: AdaptedModel, rows: Sequence[Sample], decoding: Decoding) -> list[list[int]]:
    with torch.no_grad():
        return model.generate(rows, decoding)


def evaluate(run: Path) -> Seen:
    with watched() as seen:
        seen.found["results"] = perceptune.evaluate(run)
    return seen


def serve(run: Path) -> Seen:
    """A request over HTTP, with a picture, and one that samples."""
    from perceptune.serving.limits import Limits
    from servers import load_runs, served

    with watched() as seen, served(load_runs([f"one={run}"], Limits())) as server:
        seen.found["greedy"] = server.chat()
        seen.found["sampled"] = server.chat(temperature=0.7, seed=1)
    return seen


def build_and_move(recipe: Mapping[str, Any], data: Path, dtype: str, way: str) -> Seen:
    """A model made ready on one device, then moved to another one: `to the GPU` or `back`."""
    with watched() as seen:
        model = perceptune.build(dict(recipe), dtype=dtype, ready=False)
        devices = ("cuda", "cpu") if way == "back" else ("cpu", "cuda")
        model.to(devices[0])
        model.setup(training=True)
        for device in devices:
            model.to(device)
            loss, _ = model.loss(model.collate(samples(data)))
            loss.backward()
            seen.found[device] = float(loss)
    return seen


def doctor(report: Path) -> Seen:
    """`perceptune doctor --gpu`."""
    from perceptune.cli.main import run
    from perceptune.tools import gpu_check, gpu_trials

    gpu_trials.SIZE, gpu_check.STEPS = 64, 3
    with watched() as seen:
        seen.found["code"] = run(["doctor", "--gpu", "--out", str(report)])
    return seen


def provoke() -> dict[str, list[str]]:
    """What the pretend GPU says of mistakes made on purpose: faults, or kinds of waits."""
    there, here = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
    shut = torch.zeros(1, 1, 2, 2, dtype=torch.bool, device="cuda")
    states = torch.ones(1, 1, 2, 4, device="cuda", requires_grad=True)
    drawing = torch.Generator()
    mistakes: dict[str, Callable[[], Any]] = {
        "mixed": lambda: there + here,
        "generator": lambda: there.exponential_(generator=drawing),
        "numpy": there.numpy,
        "blind rows": lambda: torch.nn.functional.scaled_dot_product_attention(states, states, states, shut),
        "value": lambda: float(there.sum()),
        "pageable": lambda: here.to("cuda", non_blocking=True),
        "pinned": lambda: here.pin_memory().to("cuda", non_blocking=True),
        "to the host": there.cpu,
        "mask": lambda: there[there > 0],
        "size": there.nonzero,
    }
    found: dict[str, list[str]] = {}
    for name, make in mistakes.items():
        with watched() as seen, device_ledger.counted() as waits, suppress(device_ledger.DeviceError):
            make()
        found[name] = [*seen.faults, *(kind for kind, _ in waits)]
    return found
