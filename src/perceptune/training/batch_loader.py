"""Training data of a run: sample selection, validated before the first step, and batches."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from perceptune.data.lazy_rows import select
from perceptune.data.media.source import MediaError
from perceptune.data.tasks.base import Task
from perceptune.encoders.cache.feature_cache import GROUP
from perceptune.models.base import AdaptedModel
from perceptune.models.text_format import Batch
from perceptune.training.broken_media import BrokenMedia, TooManyBrokenError
from perceptune.training.sampler import chosen_target, make_batch_sampler, step_seed, total_steps, view_seed
from perceptune.training.training_set import training_set
from perceptune.types import Draws, Sample
from perceptune.utils.distributed import World
from perceptune.utils.tensors import pinned

Picked = list[tuple[Sample, str, int]]  # samples, each with its target and view seed
AT_ONCE = 2**16  # samples whose features are looked up before all processes synchronise


class BatchLoader:
    """This process's part of the batches of a task's training split."""

    def __init__(self, model: AdaptedModel, task: Task, run: Path, world: World) -> None:
        self.model, self.config, self.seed, self.world = model, model.recipe.train, model.recipe.seed, world
        self.all = training_set(model, task)
        self.samples = self.all.samples
        self.order = make_batch_sampler(self.config, self.all.lengths, self.seed, self.all.draws)
        self.steps = total_steps(self.config, self.order)
        self._encoded, self._encoding = 0, 0.0  # media whose features this process has computed, and the seconds
        self.broken = BrokenMedia(model, run, world)
        self._ahead = Prefetch(self._collated)
        wanted = self.config.prefetch
        # Beside a computing CPU a second thread costs more than it prepares: 0.41 against 0.25 s per step of the demo.
        self._prefetches = model.device.type != "cpu" if wanted is None else wanted

    def precompute(self, standardized: int) -> None:
        """Compute the features that the run's steps, and statistics over `standardized` media, will need.

        The list is the same when a run is resumed, and so are the features' bits. Each process computes its part and
        can use all of them afterwards; all processes must call it.
        """
        self._prepare_texts()
        self.precompute_statistics(standardized)
        if self.model.recipe.cache.features == "off":
            return
        for samples, seeds in self._parts(max(self.steps, math.ceil(self.word_batches / self.config.accumulate))):
            self._precompute(samples, seeds, "features")

    def precompute_statistics(self, standardized: int) -> None:
        """Compute the features of `standardized` media alone."""
        if self.model.recipe.cache.features != "off":
            self._precompute(list(islice(self._distinct(), standardized)), None, "features for statistics")

    def precompute_first(self, steps: int) -> None:
        """Compute the features of the first steps.

        An incomplete last group is left out, as other media would join it in a longer run: so more steps are taken,
        until those that are wanted lie in whole groups, or the epoch ends.
        """
        if self.model.recipe.cache.features == "off":
            return
        end = math.ceil(self.epoch_steps)
        wanted, longer = self._new_media(steps), steps
        while longer < end and not all(
            now == 0 or now >= n + GROUP for n, now in zip(wanted, self._new_media(longer), strict=True)
        ):
            longer += 1
        for samples, seeds in self._parts(min(longer, end) if not self._has_views else longer):
            self._precompute(samples, seeds, "features", whole_groups=longer < end)

    def feature_seconds(self) -> tuple[float, float]:
        """Return the seconds of the features that an epoch still needs, and the number of epochs that need some.

        Without a measured rate they are computed first: then there is nothing left.
        """
        if self.model.recipe.cache.features == "off":
            return 0.0, 1.0
        views = max((store.views for store in self.model.stores.values()), default=0)
        epoch = math.ceil(self.epoch_steps)
        absent = sum(self.model.count_missing(samples, seeds) for samples, seeds in self._parts(epoch))
        known = self.world.all_gather((absent, self._encoded, self._encoding))
        absent, encoded = max(one[0] for one in known), sum(one[1] for one in known)
        if absent and not encoded:
            for samples, seeds in self._parts(epoch):
                self._precompute(samples, seeds, "features")
            absent = 0
        return absent / self.world.size * sum(one[2] for one in known) / max(encoded, 1), max(views, 1)

    @property
    def epoch_steps(self) -> float:
        """Number of steps in an epoch."""
        return self.order.batches_of(1) / self.config.accumulate

    @property
    def _has_views(self) -> bool:
        return any(store.views for store in self.model.stores.values())

    def _rows(self, steps: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of a training whose media may need features; without views those of the first epoch."""
        batches = steps * self.config.accumulate
        if not self._has_views:  # then the first epoch covers them all, and no medium is checked again
            batches = min(batches, math.ceil(self.order.batches_of(1)))
        rows = (row for batch in range(batches) for row in self.order.positions(batch))
        if self._has_views:
            return rows
        return ((0, index) for index in self.all.with_new_media(np.fromiter((i for _, i in rows), np.int64)))

    def _parts(self, steps: int) -> Iterator[tuple[list[Sample], list[int] | None]]:
        """Yield samples with the seeds of their views for the features of so many steps."""
        rows = self._rows(steps)
        while part := list(islice(rows, AT_ONCE)):
            seeds = [view_seed(self.seed, epoch, index) for epoch, index in part] if self._has_views else None
            yield list(self._samples_at(part)), seeds

    def _new_media(self, steps: int) -> list[int]:
        """Return the number of different media of each modality in the first steps."""
        rows = [index for _, index in self._rows(steps)]
        return [len(np.unique(own[own != 0])) for numbers in self.all.media for own in [numbers[rows]]]

    def _prepare_texts(self) -> None:
        if not self.model.reuses_texts:
            return
        with self.world.synced_errors():
            self.model.precompute_texts(
                self._texts(), self._uses(self.steps), rank=self.world.rank, world=self.world.size
            )
        self.model.refresh_texts()

    def _uses(self, steps: int) -> int:
        return round(steps * self.config.accumulate / self.order.batches_of(1) * len(self.samples))

    def _texts(self) -> Iterator[tuple[int, ...]]:
        ids = self.model.text.training_ids
        return (tuple(ids(sample, target)[0]) for sample in self.samples for target in sample.targets)

    def texts_of(self, steps: int) -> list[tuple[int, ...]]:
        """Return the texts of this process's rows in the first steps."""
        ids = self.model.text.training_ids
        return [tuple(ids(row[0], row[1])[0]) for step in range(steps) for part in self._picked(step) for row in part]

    def distinct_texts(self, steps: int) -> int | None:
        """Return the number of texts whose states are computed before so many steps; None if none are."""
        return self.model.count_texts(self._texts(), self._uses(steps)) if self.model.reuses_texts else None

    def batches(self, step: int) -> list[Batch | None]:
        """Return this process's rows of an optimizer step's forward passes; None for a pass without any.

        With prefetching, texts and cached features of the next step are prepared in the background meanwhile.
        """
        made = [ready or self._collate(picked, step) for picked, ready in self._ahead.get(step)]
        if self._prefetches and step + 1 < self.steps:
            self._ahead.start(step + 1)
        return made

    def whole_batches(self, number: int) -> Iterator[tuple[Batch, list[str]]]:
        """Yield the first batches of the training, those of all processes, each with the answers of its rows."""
        for index in range(number):
            picked = self._rows_at(self.order.positions(index))
            batch = self._collate(picked, index // self.config.accumulate)
            if batch is not None:
                yield batch, [target for sample, target, _ in picked if sample not in self.broken]

    @property
    def word_batches(self) -> int:
        """Number of batches of the word pre-training; 0 without it."""
        words = self.config.pretrain_words
        return 0 if words is None else max(1, round(self.order.batches_of(words.epochs)))

    def wait(self) -> None:
        """Wait for the background thread: the tokenizer must not be used by two threads at a time."""
        self._ahead.wait()

    def close(self) -> None:
        """Stop the background thread."""
        self._ahead.close()

    def dummy_batch(self) -> Batch:
        """Return one row of text, for a process without rows that must stay in step with the others."""
        first = self.samples[0]
        return self.model.collate([Sample(first.id, {}, first.prompt)], [first.targets[0]])

    def one_sample_per_medium(self, most: int) -> Iterator[Sample]:
        """Yield up to `most` readable samples in random order, each with a new medium; the same on every process."""
        found = 0
        for sample in self._distinct():
            if found == most:
                return
            if sample in self.broken:
                continue
            if self.broken.is_readable(sample):
                found += 1
                yield sample
            else:
                self.broken.count()

    def _distinct(self) -> Iterator[Sample]:
        """Yield samples in random order, each with a new medium."""
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.seed)).numpy()
        return iter(select(self.samples, self.all.with_new_media(order).tolist()))

    def _precompute(
        self, samples: Sequence[Sample], view_seeds: Sequence[int] | None, label: str, *, whole_groups: bool = False
    ) -> None:
        """Compute features of some samples together with the other processes, and count the broken media."""
        start = time.monotonic()
        with self.world.synced_errors(), suppress(TooManyBrokenError):
            self._encoded += self.model.precompute(
                samples, view_seeds, label=label, on_broken=self.broken.give_up_on, whole_groups=whole_groups,
                rank=self.world.rank, world=self.world.size,
            )  # fmt: skip
        self._encoding += time.monotonic() - start
        self.broken.sync()

    def _collated(self, step: int) -> list[tuple[Picked, Batch | None]]:
        """Return the rows of each forward pass, and the batch if all features are cached. Runs in the background."""
        return [(picked, self._ready(picked, step)) for picked in self._picked(step)]

    def _picked(self, step: int) -> Iterator[Picked]:
        for micro in range(self.config.accumulate):
            rows = self.world.shard(self.order.positions(step * self.config.accumulate + micro))
            yield self._rows_at(rows)

    def _rows_at(self, rows: Sequence[tuple[int, int]]) -> Picked:
        return [
            (sample, chosen_target(sample.targets, self.seed, e, i), view_seed(self.seed, e, i))
            for (e, i), sample in zip(rows, self._samples_at(rows), strict=True)
        ]

    def _samples_at(self, rows: Sequence[tuple[int, int]]) -> Sequence[Sample]:
        indices = [index for _, index in rows]
        return [self.samples[i] for i in indices] if isinstance(self.samples, list) else select(self.samples, indices)

    def _ready(self, picked: Picked, step: int) -> Batch | None:
        kept = [row for row in picked if row[0] not in self.broken]
        if not kept:
            return None
        samples, targets, view_seeds = map(list, zip(*kept, strict=True))
        features = self.model.get_cached(samples, view_seeds)
        if features is None:
            return None
        # Copied to pinned memory here, in the background.
        there = {name: replace(one, values=pinned(one.values, self.model.device)) for name, one in features.items()}
        return self._with_draws(Batch(self.model.tokens(samples, targets), there), kept, step)

    def _collate(self, picked: Picked, step: int) -> Batch | None:
        """Collate a batch without the samples whose media are broken."""
        kept = [row for row in picked if row[0] not in self.broken]
        while kept:
            try:
                return self._with_draws(self.model.collate(*map(list, zip(*kept, strict=True))), kept, step)
            except MediaError:
                kept = [row for row in kept if self.broken.is_readable(row[0], [row[2]])]
        return None

    def _with_draws(self, batch: Batch, picked: Picked, step: int) -> Batch:
        """Return the batch with its samples, and the seeds of its rows and of the step for what is drawn at random."""
        samples, _, seeds = map(tuple, zip(*picked, strict=True))
        draws = Draws(seeds, step_seed(self.seed, step))
        features = {name: replace(one, draws=draws) for name, one in batch.features.items()}
        return replace(batch, features=features, samples=samples, seeds=seeds)


T = TypeVar("T")


class Prefetch(Generic[T]):
    """Background preparation of numbered items. Errors of `make` are raised by `get`, in the calling thread."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def start(self, number: int) -> None:
        """Start preparing an item."""
        self._ahead = number, self._thread.submit(self._make, number)

    def get(self, number: int) -> T:
        """Return the item: the prepared one, or a new one if another was prepared."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            return ahead[1].result()
        if ahead is not None:
            wait([ahead[1]])
        return self._make(number)

    def wait(self) -> None:
        """Wait until the thread is idle: the tokenizer must not be used by two threads at a time."""
        if self._ahead is not None:
            wait([self._ahead[1]])

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(cancel_futures=True)
