"""Order of the training samples: a pure function of the seed and the step, so a resumed run continues exactly."""

import math
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceptune.config.training import TrainConfig
from perceptune.data.subset import sample_count

# Number of batches within which samples are sorted by length: enough to save padding, few enough to stay random.
WINDOW = 64


class TrainingSampler(ABC):
    """The batches of a training, counted from 0 over all its epochs."""

    @abstractmethod
    def positions(self, batch: int) -> list[tuple[int, int]]:
        """Return (epoch, sample index) of each row of a batch."""

    @abstractmethod
    def batches_of(self, epochs: float) -> float:
        """Return the number of batches in this number of epochs."""

    @abstractmethod
    def epochs_in(self, batches: int) -> int:
        """Return the number of whole epochs in this number of batches."""


class TextLengths:
    """Tokens of each sample with each of its targets."""

    def __init__(self, tokens: NDArray[np.int32], targets: NDArray[np.int32] | None = None) -> None:
        """Take the `tokens` (all targets,), sample by sample, and the number of `targets` (n,) of each; None = one."""
        self._tokens = tokens
        self._targets = np.ones(len(tokens), np.int32) if targets is None else targets
        self._starts = np.cumsum(self._targets) - self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def mean(self) -> float:
        """Return the mean over all targets."""
        return float(self._tokens.mean())

    def drawn(self, rows: NDArray[Any], passes: NDArray[Any], seed: int) -> NDArray[np.int32]:
        """Return the tokens of samples (k,) with the target that `chosen_target` draws in their epoch."""
        index = self._starts[rows]
        for place in np.flatnonzero(self._targets[rows] > 1):
            row = int(rows[place])
            index[place] += _chosen_index(int(self._targets[row]), seed, int(passes[place]), row)
        return self._tokens[index]


class WeightedSampler:
    """Epochs in which each part of the samples has a given weight; within a part all samples come equally often.

    An epoch has as many draws as there are samples; a part's number of draws is its fraction of the weights, rounded so
    that it is exact over all epochs. A part is traversed in permutations of its own, one after the other.
    """

    def __init__(self, parts: NDArray[np.integer], weights: Sequence[float], seed: int) -> None:
        """Take the part number of each sample, `parts` (n,), and the parts' `weights`, at least 0."""
        self._n, self._seed = len(parts), seed
        by_part = np.argsort(parts, kind="stable")
        self._members = np.split(by_part, np.searchsorted(parts[by_part], np.arange(1, len(weights))))
        present = [weight if len(members) else 0.0 for weight, members in zip(weights, self._members, strict=True)]
        self._ends = np.cumsum(present) / sum(present)

    def epoch(self, epoch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the sample index of each draw (n,), and the number of earlier passes over its part (n,)."""
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
        # A part with less than one draw per epoch may get an early draw: then there is one too many.
        mixed = _permutation(sum(map(len, indices)), _generator(self._seed, epoch))[: self._n]
        return np.concatenate(indices)[mixed], np.concatenate(passes)[mixed]

    def _generator(self, part: int, passed: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed * 1_000_003 + passed) * 1_009 + part + 1)


class BatchSampler(TrainingSampler):
    """Seeded permutations of `n` samples, one after the other; epochs join without a short batch."""

    def __init__(self, n: int, batch_size: int, seed: int, draws: WeightedSampler | None = None) -> None:
        """Use `draws` as epochs in place of permutations, if given."""
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
    """Batches of samples of similar length, at most `budget` tokens each when padded to their longest drawn target.

    Each epoch is a seeded permutation, cut into windows of about 64 batches; within a window samples are sorted by
    length and packed, longest first; then the epoch's batches are shuffled. Every sample comes once per epoch. No
    sample may be longer than the budget.
    """

    def __init__(self, lengths: TextLengths, budget: int, seed: int, draws: WeightedSampler | None = None) -> None:
        self.lengths, self.budget, self.seed, self._draws = lengths, budget, seed, draws
        self.window = WINDOW * max(1, int(budget / lengths.mean()))
        self._ends: list[int] = []  # cumulative number of batches at the end of each epoch packed so far
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
        """Pack the batches of an epoch and make it the current one."""
        generator = _generator(self.seed, epoch)
        rows, passes = _drawn(len(self.lengths), generator, epoch, self._draws)
        bounds: list[tuple[int, int]] = []
        for start in range(0, len(rows), self.window):
            window = slice(start, start + self.window)
            lengths = self.lengths.drawn(rows[window], passes[window], self.seed)
            longest_first = np.argsort(-lengths, kind="stable")
            rows[window], passes[window] = rows[window][longest_first], passes[window][longest_first]
            lengths = lengths[longest_first]
            at, stop = start, start + len(longest_first)
            while at < stop:
                end = min(at + self.budget // int(lengths[at - start]), stop)
                bounds.append((at, end))
                at = end
        self._epoch, self._rows, self._passes = epoch, rows, passes
        self._bounds = np.array(bounds)[_permutation(len(bounds), generator)]
        if epoch == len(self._ends):
            self._ends.append((self._ends[-1] if self._ends else 0) + len(bounds))


def make_batch_sampler(
    config: TrainConfig, lengths: TextLengths, seed: int, draws: WeightedSampler | None = None
) -> TrainingSampler:
    """Return the sampler for a recipe; `draws` replace permutations."""
    if config.batch_tokens is None:
        return BatchSampler(len(lengths), config.batch_size, seed, draws)
    return TokenBatchSampler(lengths, config.batch_tokens, seed, draws)


def chosen_target(targets: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """Choose one of several references at random for each sample in each epoch."""
    return targets[_chosen_index(len(targets), seed, epoch, index)]


def view_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed, below 2^32, of a sample's augmented view in an epoch."""
    return random.Random(f"view-{seed}-{epoch}-{index}").getrandbits(32)


def step_seed(seed: int, step: int) -> int:
    """Return the seed, below 2^32, of what is drawn for all rows of a step alike."""
    return random.Random(f"step-{seed}-{step}").getrandbits(32)


def total_steps(config: TrainConfig, order: TrainingSampler) -> int:
    """Return the number of optimizer steps of a training in this order."""
    if config.steps is not None:
        return config.steps
    return max(1, round(order.batches_of(config.epochs) / config.accumulate))


def planned_length(config: TrainConfig, n: int, tokens: int, seed: int) -> tuple[int, int]:
    """Steps of a training on a split of `n` samples of so many tokens each, and how many samples these steps see."""
    lengths = TextLengths(np.full(min(n, sample_count(n, config.samples) or n), tokens, np.int32))
    steps = total_steps(config, make_batch_sampler(config, lengths, seed))
    batch = config.batch_size if config.batch_tokens is None else config.batch_tokens // tokens
    return steps, steps * batch * config.accumulate


def _chosen_index(targets: int, seed: int, epoch: int, index: int) -> int:
    return random.Random(f"{seed}-{epoch}-{index}").choice(range(targets)) if targets > 1 else 0


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def _drawn(
    n: int, generator: torch.Generator, epoch: int, draws: WeightedSampler | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an epoch's sample indices (n,), and for each of them which pass over the data it belongs to (n,)."""
    if draws is not None:
        return draws.epoch(epoch)
    return _permutation(n, generator), np.broadcast_to(np.int64(epoch), n).copy()


def _permutation(n: int, generator: torch.Generator) -> NDArray[Any]:
    """Return a permutation, in 4 bytes per sample if possible: it stays in memory for an epoch."""
    drawn = torch.randperm(n, generator=generator)
    return drawn.to(torch.int32 if n < 2**31 else torch.int64).numpy()
