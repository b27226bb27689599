"""Which sample comes when: a pure function of the seed and the step, so a resumed run goes on exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from perceptune.config import TrainConfig


class DataOrder:
    """Seeded permutations of `n` samples, one after the other; epochs join without a short batch."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._epoch = -1
        self._permutation: list[int] = []

    def positions(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, sample index) of each row of a batch, counted from 0 over the whole training."""
        start = batch * self.batch_size
        return [self._at(position) for position in range(start, start + self.batch_size)]

    def _at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.n, generator=generator).tolist()
        return epoch, self._permutation[place]


def chosen_target(targets: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """One of several references, drawn anew for each sample in each epoch."""
    if len(targets) == 1:
        return targets[0]
    return random.Random(f"{seed}-{epoch}-{index}").choice(list(targets))


def subset(n: int, size: int | None, seed: int) -> Sequence[int]:
    """A fixed random subset of range(n), in order; smaller subsets of one seed lie inside larger ones."""
    if size is None or size >= n:
        return range(n)
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(n, generator=generator)[:size].tolist())


def total_steps(config: TrainConfig, n: int) -> int:
    """Optimizer steps of a training on `n` samples."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * n / (config.batch_size * config.accumulate)))


def learning_rate(config: TrainConfig, group: str, step: int, steps: int) -> float:
    """Rate of a parameter group at a step (from 0): warm-up, then cosine, linear or constant.

    The paper's code keeps the rate constant inside an epoch; here the cosine falls at each step.
    """
    if group == "prompt":
        peak, schedule = config.prompt_lr, config.prompt_schedule
    else:
        peak, schedule = config.lr, config.schedule
    warmup = min(config.warmup_steps, steps // 2)  # a short run must not spend itself on warming up
    if schedule != "constant" and step < warmup:
        start = peak / 2 if config.warmup_lr is None else config.warmup_lr * peak / config.lr
        return start + (peak - start) * step / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    low = min(config.min_lr, peak)
    if schedule == "cosine":
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return low + (peak - low) * (1 - done)
    return peak
