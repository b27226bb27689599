"""Which sample comes when: a pure function of the seed and the step, so a resumed run goes on exactly."""

import math
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceptune.config.schema import TrainConfig

# Batches among which samples are sorted by length: enough to save padding, few enough to stay random.
WINDOW = 64


class TrainingSampler(ABC):
    """The batches of a training, counted from 0 over all its epochs."""

    @abstractmethod
    def positions(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, sample index) of each row of a batch."""

    @abstractmethod
    def batches_of(self, epochs: float) -> float:
        """How many batches so many epochs have."""

    @abstractmethod
    def epochs_in(self, batches: int) -> int:
        """How many whole epochs so many batches have."""


class WeightedSampler:
    """Epochs of samples that fall into parts, each part drawn by its weight; inside a part all come equally often.

    An epoch has as many draws as there are samples; how many of them are a part's is its share of the weights, rounded
    so that over all epochs it is exact. A part goes through permutations of its own, one after the other.
    """

    def __init__(self, parts: NDArray[np.integer], weights: Sequence[float], seed: int) -> None:
        """`parts` has the number of each sample's part (n,); `weights` are those of the parts, at least 0."""
        self._n, self._seed = len(parts), seed
        by_part = np.argsort(parts, kind="stable")
        self._members = np.split(by_part, np.searchsorted(parts[by_part], np.arange(1, len(weights))))
        present = [weight if len(members) else 0.0 for weight, members in zip(weights, self._members, strict=True)]
        self._ends = np.cumsum(present) / sum(present)

    def epoch(self, epoch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Sample index of each draw (n,), and how many times its part had been gone through before it (n,)."""
        before, after = (np.rint(self._ends * self._n * passed).astype(np.int64) for passed in (epoch, epoch + 1))
        indices, passes = [], []
        for number, members in enumerate(self._members):
            start, stop = (int(np.diff(ends, prepend=0)[number]) for ends in (before, after))
            if stop <= start:
                continue
            passed, places = np.divmod(np.arange(start, stop), len(members))
            for k in np.unique(passed):
                permuted = members[_permutation(len(members), self._generator(number, int(k)))]
                indices.append(permuted[places[passed == k]])
            passes.append(passed)
        # A part with less than one draw an epoch may owe one: then there is one too many.
        mixed = _permutation(sum(map(len, indices)), _generator(self._seed, epoch))[: self._n]
        return np.concatenate(indices)[mixed], np.concatenate(passes)[mixed]

    def _generator(self, part: int, passed: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed * 1_000_003 + passed) * 1_009 + part + 1)


class BatchSampler(TrainingSampler):
    """Seeded permutations of `n` samples, one after the other; epochs join without a short batch."""

    def __init__(self, n: int, batch_size: int, seed: int, draws: WeightedSampler | None = None) -> None:
        """With `draws` an epoch is these, in place of a permutation."""
        self.n, self.batch_size, self.seed, self._draws = n, batch_size, seed, draws
        self._epoch = -1
        self._rows, self._passes = np.empty(0), np.empty(0)

    def positions(self, batch: int) -> list[tuple[int, int]]:
        start = batch * self.batch_size
        return [self._at(position) for position in range(start, start + self.batch_size)]

    def batches_of(self, epochs: float) -> float:
        return epochs * self.n / self.batch_size

    def epochs_in(self, batches: int) -> int:
        return batches * self.batch_size // self.n

    def _at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            self._rows, self._passes = _drawn(self.n, _generator(self.seed, epoch), epoch, self._draws)
            self._epoch = epoch
        return int(self._passes[place]), int(self._rows[place])


class TokenBatchSampler(TrainingSampler):
    """Batches of about equally long samples, at most `budget` tokens each when padded to their longest.

    Each epoch is a seeded permutation, cut into windows of about 64 batches; within a window samples are sorted by
    length and packed, longest first; then the epoch's batches are shuffled. Every sample comes once per epoch. No
    sample may be longer than the budget.
    """

    def __init__(
        self, lengths: NDArray[np.int32], budget: int, seed: int, draws: WeightedSampler | None = None
    ) -> None:
        self.lengths, self.budget, self.seed, self._draws = lengths, budget, seed, draws
        self.window = WINDOW * max(1, int(budget / float(lengths.mean())))
        self._ends: list[int] = []  # number of batches up to the end of each epoch packed so far
        self._epoch = -1
        self._rows, self._passes = np.empty(0), np.empty(0)
        self._bounds: NDArray[Any] = np.empty(0)

    def positions(self, batch: int) -> list[tuple[int, int]]:
        while not self._ends or self._ends[-1] <= batch:
            self._pack(len(self._ends))
        epoch = bisect_right(self._ends, batch)
        if epoch != self._epoch:
            self._pack(epoch)
        start, stop = self._bounds[batch - (self._ends[epoch - 1] if epoch else 0)]
        return list(zip(self._passes[start:stop].tolist(), self._rows[start:stop].tolist(), strict=True))

    def batches_of(self, epochs: float) -> float:
        whole = math.floor(epochs)
        while len(self._ends) <= whole:
            self._pack(len(self._ends))
        before = self._ends[whole - 1] if whole else 0
        return before + (epochs - whole) * (self._ends[whole] - before)

    def epochs_in(self, batches: int) -> int:
        while not self._ends or self._ends[-1] <= batches:
            self._pack(len(self._ends))
        return bisect_right(self._ends, batches)

    def _pack(self, epoch: int) -> None:
        """Makes an epoch the present one."""
        generator = _generator(self.seed, epoch)
        rows, passes = _drawn(len(self.lengths), generator, epoch, self._draws)
        bounds: list[tuple[int, int]] = []
        for start in range(0, len(rows), self.window):
            window = slice(start, start + self.window)
            longest_first = np.argsort(-self.lengths[rows[window]], kind="stable")
            rows[window], passes[window] = rows[window][longest_first], passes[window][longest_first]
            at, stop = start, start + len(longest_first)
            while at < stop:
                end = min(at + self.budget // int(self.lengths[rows[at]]), stop)
                bounds.append((at, end))
                at = end
        self._epoch, self._rows, self._passes = epoch, rows, passes
        self._bounds = np.array(bounds)[_permutation(len(bounds), generator)]
        if epoch == len(self._ends):
            self._ends.append((self._ends[-1] if self._ends else 0) + len(bounds))


def make_batch_sampler(
    config: TrainConfig, lengths: NDArray[np.int32], seed: int, draws: WeightedSampler | None = None
) -> TrainingSampler:
    """The order a recipe asks for; `lengths` are the samples' tokens, `draws` come in place of permutations."""
    if config.batch_tokens is None:
        return BatchSampler(len(lengths), config.batch_size, seed, draws)
    return TokenBatchSampler(lengths, config.batch_tokens, seed, draws)


def chosen_target(targets: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """One of several references, drawn anew for each sample in each epoch."""
    if len(targets) == 1:
        return targets[0]
    return random.Random(f"{seed}-{epoch}-{index}").choice(list(targets))


def view_seed(seed: int, epoch: int, index: int) -> int:
    """Chooses an augmented view for a sample in an epoch: a number below 2^32."""
    return random.Random(f"view-{seed}-{epoch}-{index}").getrandbits(32)


def total_steps(config: TrainConfig, order: TrainingSampler) -> int:
    """Optimizer steps of a training in this order."""
    if config.steps is not None:
        return config.steps
    return max(1, round(order.batches_of(config.epochs) / config.accumulate))


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def _drawn(
    n: int, generator: torch.Generator, epoch: int, draws: WeightedSampler | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """An epoch's sample indices (n,), and for each of them which pass over the data it belongs to (n,)."""
    if draws is not None:
        return draws.epoch(epoch)
    return _permutation(n, generator), np.broadcast_to(np.int64(epoch), n).copy()


def _permutation(n: int, generator: torch.Generator) -> NDArray[Any]:
    """In 4 bytes a sample where they are enough: of a hundred million samples it stays in memory for an epoch."""
    drawn = torch.randperm(n, generator=generator)
    return drawn.to(torch.int32 if n < 2**31 else torch.int64).numpy()
