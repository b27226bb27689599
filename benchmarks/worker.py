"""One side of a comparison: a process that imports one commit's `perceptune` and runs what it is asked for.

    PYTHONPATH=CHECKOUT/src python -m benchmarks.worker MODELS OWN_FOLDER

Reads names of rows from its input, a line each, and answers each with a line of JSON. It calls only what
`perceptune` exports and torch's own hook on optimizers, so that it runs on every commit.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import perceptune
from benchmarks.workloads import ANSWERS, questions, recipe

WARM_UP, MEASURED = 3, 5  # steps of a training
REPEATS = 5  # of an answer


class Rows:
    """What can be asked for: `train NAME`, `answer NAME`, `losses NAME`."""

    def __init__(self, models: Path, own: Path) -> None:
        self.models, self.own = models, own
        self._built: dict[str, Any] = {}
        self._run = 0

    def __call__(self, row: str) -> dict[str, Any]:
        kind, _, name = row.partition(" ")
        return {"train": self._train, "answer": self._answer, "losses": self._losses}[kind](name)

    def _train(self, name: str) -> dict[str, Any]:
        """Some steps of a training, after the first ones."""
        marks: list[tuple[float, float]] = []
        handle = register_optimizer_step_post_hook(lambda *_: marks.append(now()))
        try:
            losses = self._trained(name, steps=WARM_UP + MEASURED)
        finally:
            handle.remove()
        if len(marks) != WARM_UP + MEASURED:
            raise RuntimeError(f"{len(marks)} optimizer steps in a training of {WARM_UP + MEASURED}")
        return {**least(marks[WARM_UP - 1 :]), "result": [loss.hex() for loss in losses]}

    def _losses(self, name: str) -> dict[str, Any]:
        return {"losses": [loss.hex() for loss in self._trained(name, steps=20)]}

    def _trained(self, name: str, steps: int) -> list[float]:
        """The loss of each step of a new training."""
        self._run += 1
        run = self.own / f"run{self._run}"
        given = recipe(self.models, name, self.own / "cache", train={"steps": steps})
        perceptune.train(perceptune.load_recipe(given), run)
        rows = [json.loads(line) for log in run.glob("*.jsonl") for line in log.read_text("utf-8").splitlines()]
        shutil.rmtree(run)
        return [row["loss"] for row in rows if "loss" in row]

    def _answer(self, name: str) -> dict[str, Any]:
        kind, decoding, count = ANSWERS[name]
        if name not in self._built:
            given = recipe(self.models, kind, self.own / "cache", decode=decoding)
            self._built[name] = perceptune.build(perceptune.load_recipe(given)).eval()
        model = self._built[name]
        samples = [
            perceptune.Sample(number, {"image": image}, prompt)
            for number, image, prompt in questions(self.models, count)
        ]
        marks, answers = [now()], []
        for _ in range(REPEATS):
            answers.append(model.answer(samples))
            marks.append(now())
        return {**least(marks), "result": answers}


def now() -> tuple[float, float]:
    """Processor time and wall time."""
    return time.process_time(), time.perf_counter()


def least(marks: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The least time from one mark to the next: whatever else the machine does only adds."""
    cpu, wall = (min(end - start for start, end in pairwise(times)) for times in zip(*marks, strict=True))
    return {"cpu": cpu, "wall": wall}


def main(models: Path, own: Path) -> None:
    # What the library prints is not an answer: it goes where errors go.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        rows = Rows(models, own)
        for line in sys.stdin:
            print(json.dumps(rows(line.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
