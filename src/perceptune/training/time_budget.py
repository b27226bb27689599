"""The steps that fit into the minutes a user allows: some are timed, and the state is as if they had not been taken."""

import math
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from perceptune.config.overrides import Override
from perceptune.config.recipe import Recipe, load_recipe
from perceptune.errors import UserError
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.optimizer import MethodOptimizer
from perceptune.training.validation import Validator
from perceptune.utils.run_log import Progress, progress

TIMED = 20  # steps
SHARE = 0.15  # of the time, after which the timing of steps ends early
VALIDATIONS, VALIDATING = 10, 0.3  # most evaluations during training, and the most of the remaining time they take
_MOST_STEPS = 10**8


def require_minutes(minutes: float, overrides: Any, *, resume: bool) -> None:
    """Raise `UserError` for a time that is not positive, and beside another length of the training."""
    if not (math.isfinite(minutes) and minutes > 0):
        raise UserError(f"--minutes {minutes:g}: a training takes a positive number of minutes")
    if resume:
        raise UserError("--minutes goes with a new run: a resumed one has its steps in its recipe")
    for override in overrides:
        key, _, value = override.partition("=") if isinstance(override, str) else (override[0], "", override[1])
        if key in ("train.steps", "train.epochs") and value not in (None, "null"):
            raise UserError(f"--minutes and `{key}` both say how long to train: leave one out")


@dataclass(frozen=True)
class Costs:
    """Measured times, in seconds, from which the number of steps follows."""

    elapsed: float  # until now
    steps: tuple[float, ...]  # each timed step, the first time
    again: tuple[float, ...]  # the same steps once more, with what the first pass has computed
    features: float  # of all media that still need some, in an epoch
    epochs_with_features: float  # in which media need new ones: 1, or the number of augmented views
    epoch: float  # steps
    validation: float | None

    @property
    def fresh(self) -> float:
        """Seconds of a step in the first epoch. The first step is left out, as it sets up what all others use."""
        return _mean(self.steps[1:] or self.steps)

    @property
    def cached(self) -> float:
        """Seconds of a step in later epochs, which is not slower."""
        return min(_mean(self.again), self.fresh)

    def seconds(self, steps: int, texts: float | None = None) -> float:
        """Return the duration of a training; `texts`: that of all texts' states, if they are computed before it."""
        first = 0 if texts is not None else min(steps, self.epoch)
        return (
            (texts or 0) + first * self.fresh + (steps - first) * self.cached
            + self.features * min(steps / self.epoch, self.epochs_with_features)
        )  # fmt: skip


def settled_steps(
    costs: Costs, minutes: float, texts_of: Callable[[int], float | None], recipe: Recipe
) -> tuple[list[Override], str]:
    """Return the recipe's keys for a training of so many minutes, and the line that says so.

    `texts_of` returns the seconds that all texts' states take before a training of some steps; None if it computes
    them with each batch. Raises `UserError` if not even one step fits.
    """
    left = 60 * minutes - costs.elapsed
    times = 0 if costs.validation is None else VALIDATIONS
    if costs.validation:
        times = max(1, min(VALIDATIONS, int(VALIDATING * left / costs.validation)))
    left -= times * (costs.validation or 0)
    steps = _most(lambda n: costs.seconds(n, 0.0), left)
    texts = texts_of(steps)
    if texts is not None:
        steps = _most(lambda n: costs.seconds(n, texts), left)
    if texts is None or texts_of(steps) is None:
        steps = _most(costs.seconds, left)
    took = f"{len(costs.steps)} steps took {sum(costs.steps):.1f} s"
    if steps < 1:
        needed = (60 * minutes - left + costs.seconds(1)) / 60
        raise UserError(
            f"--minutes {minutes:g} is too short for one step: {TIMED} steps take about {TIMED * costs.fresh:.1f} s, "
            f"after {costs.elapsed:.1f} s of preparation; give at least {math.ceil(100 * needed) / 100:g} minutes"
        )
    keys: list[Override] = [
        ("train.steps", steps), ("train.warmup_steps", min(recipe.train.warmup_steps, steps // 10)),
        ("eval.patience", None),
    ]  # fmt: skip
    if times:
        keys.append(("eval.every", math.ceil(steps / times)))
    instead = "" if recipe.train.steps is None else f", in place of the recipe's {recipe.train.steps}"
    if recipe.eval.patience is not None:
        instead += "; `eval.patience` is left out, as the time decides"
    return keys, f"{took}: {steps} steps fit into {minutes:g} minute{'' if minutes == 1 else 's'}{instead}"


def _most(seconds: Callable[[int], float], left: float) -> int:
    return bisect_right(range(_MOST_STEPS), left, key=seconds) - 1


class StepTimer:
    """Times the first steps of a training, its features, texts and evaluation, since `began` (`time.monotonic`)."""

    def __init__(self, loader: BatchLoader, optimizer: MethodOptimizer, held_out: Validator, began: float) -> None:
        self.model, self.loader, self.optimizer, self.held_out = loader.model, loader, optimizer, held_out
        self.world, self._began = loader.world, began

    def choose_steps(
        self, initialize: Callable[[], Any], step: Callable[[int, Progress], Any], minutes: float
    ) -> Recipe:
        """Initialise, take steps by `step` and rewind; return the recipe with the number of steps, and print it."""
        self.loader.steps, recipe = TIMED, self.model.recipe  # nothing is prepared for later steps
        if recipe.train.pretrain_words is not None:
            raise UserError(
                "--minutes does not go with `train.pretrain_words`, whose time is not known: set `train.steps`"
            )
        with self._rewound():
            initialize()
            costs, per_text = self._measure(step, 60 * minutes * SHARE)

        def texts_of(steps: int) -> float | None:
            distinct = None if per_text is None else self.loader.distinct_texts(steps)
            return None if distinct is None or per_text is None else distinct * per_text

        keys, line = self.world.run_on_main(lambda: settled_steps(costs, minutes, texts_of, recipe))
        if self.world.is_main:
            print(line, file=sys.stderr)
        return load_recipe(recipe, keys)

    def _measure(self, step: Callable[[int, Progress], Any], most: float) -> tuple[Costs, float | None]:
        """Return costs, and the seconds of a text's states if the model reuses them."""
        self.loader.precompute_first(TIMED)
        with self.model.trying_texts() as keep_texts:
            fresh = self._timed(step, TIMED, most)
            texts = self.loader.texts_of(len(fresh)) if self.model.reuses_texts else []
            start = time.monotonic()
            computed = keep_texts(texts)
            per_text = (time.monotonic() - start) / computed if computed else None
            again = self._timed(step, len(fresh), math.inf)
        validation = None
        if self.held_out.samples:
            self.loader.wait()
            start = time.monotonic()
            self.held_out.validate(0)
            validation = time.monotonic() - start
        features, epochs = self.loader.feature_seconds()
        elapsed = time.monotonic() - self._began
        return Costs(
            elapsed, tuple(fresh), tuple(again), features, epochs, self.loader.epoch_steps, validation
        ), per_text

    def _timed(self, step: Callable[[int, Progress], Any], steps: int, most: float) -> list[float]:
        seconds: list[float] = []
        with progress(steps, "timing steps") as bar:
            for number in range(steps):
                start = time.monotonic()
                step(number, bar)
                seconds.append(time.monotonic() - start)
                if any(self.world.all_gather(sum(seconds) > most)):
                    break
        return seconds

    @contextmanager
    def _rewound(self) -> Iterator[None]:
        """Restore method, optimizer and random state at the end of the block."""
        before = {name: tensor.clone() for name, tensor in self.model.method.state_dict().items()}
        beside = [parameter.detach().clone() for parameter in self.optimizer.auxiliary.values()]
        device = self.model.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            self.model.method.load_state_dict(before)
            for parameter, value in zip(self.optimizer.auxiliary.values(), beside, strict=True):
                parameter.data.copy_(value)
            self.optimizer.reset()


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
