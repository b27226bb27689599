"""The training data of a run: which samples, checked before the first step, and what to do with broken media."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from perceptune.data.lazy_rows import select
from perceptune.data.media.source import MediaError
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.batch import Batch
from perceptune.training.checkpoints import BAD_MEDIA
from perceptune.training.prefetch import Prefetch
from perceptune.training.sampler import chosen_target, make_batch_sampler, total_steps, view_seed
from perceptune.training.training_set import name_of, training_set
from perceptune.types import Medium, Sample
from perceptune.utils.atomic_io import write_text
from perceptune.utils.devices import pinned
from perceptune.utils.distributed import World

Picked = list[tuple[Sample, str, int]]  # samples, each with its target and the draw of its view for this time
AT_ONCE = 2**16  # samples whose features are looked for before all processes wait for one another


class _TooManyBadError(Exception):
    """More than `train.max_bad_media`: what all processes have found is said together."""


class BatchLoader:
    """This process's part of the batches of a task's training split.

    `bad` maps each broken or missing medium to the reason; it is part of a checkpoint, so a resumed run leaves out what
    the uninterrupted one does.
    """

    def __init__(self, model: AdaptedModel, task: Task, run: Path, world: World) -> None:
        self.model, self.config, self.seed, self.world = model, model.recipe.train, model.recipe.seed, world
        self.all = training_set(model, task)
        self.samples = self.all.samples
        self.order = make_batch_sampler(self.config, self.all.lengths, self.seed, self.all.draws)
        self.steps = total_steps(self.config, self.order)
        self.bad: dict[str, str] = {}
        self.found: dict[str, tuple[str, str]] = {}  # found since the last count, by this process: sample and reason
        self.listed = run / BAD_MEDIA
        self._ahead = Prefetch(self._collated)
        wanted = self.config.prefetch
        # Beside a computing CPU a second thread costs more than it prepares: 0.41 against 0.25 s a step of the demo.
        self._prefetches = model.device.type != "cpu" if wanted is None else wanted

    def precompute(self, standardized: int) -> None:
        """Computes the features that the run's steps, and statistics over `standardized` media, will need.

        The list is the same when a run is resumed, and with it the features' bits. Each process computes its share and
        may use all of them afterwards; all processes must call it.
        """
        self._prepare_texts()
        if self.model.recipe.cache.features == "off":
            return
        self._precompute(list(islice(self._distinct(), standardized)), None, "features for statistics")
        batches, views = self.steps * self.config.accumulate, any(store.views for store in self.model.stores.values())
        if not views:  # then the first epoch reaches them all, and a medium need not be looked for again
            batches = min(batches, math.ceil(self.order.batches_of(1)))
        rows = (row for batch in range(batches) for row in self.order.positions(batch))
        if not views:
            rows = ((0, index) for index in self.all.with_new_media(np.fromiter((i for _, i in rows), np.int64)))
        while part := list(islice(rows, AT_ONCE)):
            draws = [view_seed(self.seed, epoch, index) for epoch, index in part] if views else None
            self._precompute(list(self._samples_at(part)), draws, "features")

    def _prepare_texts(self) -> None:
        if not self.model.reuses_texts:
            return
        uses = round(self.steps * self.config.accumulate / self.order.batches_of(1) * len(self.samples))
        with self.world.synced_errors():
            self.model.precompute_texts(self._texts(), uses, rank=self.world.rank, world=self.world.size)
        self.model.refresh_texts()

    def _texts(self) -> Iterator[tuple[int, ...]]:
        ids = self.model.text.training_ids
        return (tuple(ids(sample, target)[0]) for sample in self.samples for target in sample.targets)

    def batches(self, step: int) -> list[Batch | None]:
        """This process's rows of the forward passes of an optimizer step; None where it has none.

        With prefetching, texts and kept features of the step after it are prepared in the background meanwhile.
        """
        made = [ready or self._collate(picked) for picked, ready in self._ahead.get(step)]
        if self._prefetches and step + 1 < self.steps:
            self._ahead.start(step + 1)
        return made

    def wait(self) -> None:
        """Waits for what is being prepared: whoever needs the tokenizer must have it alone."""
        self._ahead.wait()

    def close(self) -> None:
        """Ends the background thread."""
        self._ahead.close()

    def dummy_batch(self) -> Batch:
        """One row of text, for a process without rows that must keep step with the others."""
        first = self.samples[0]
        return self.model.collate([Sample(first.id, {}, first.prompt)], [first.targets[0]])

    def one_sample_per_medium(self, most: int) -> Iterator[Sample]:
        """Up to `most` readable samples in random order, each with a new medium; the same on every process."""
        found = 0
        for sample in self._distinct():
            if found == most:
                return
            if self._is_bad(sample):
                continue
            if self._readable(sample):
                found += 1
                yield sample
            else:
                self._count_bad()

    def sync_broken_media(self) -> None:
        """Counts what any process has found broken since the last call. All processes must call it."""
        parts = self.world.all_gather(self.found)
        self.found = {medium: told for part in parts for medium, told in part.items()}
        with self.world.same_on_all_ranks():
            self._count_bad()

    def _distinct(self) -> Iterator[Sample]:
        """Samples in random order, each with a medium not seen before."""
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.seed)).numpy()
        return iter(select(self.samples, self.all.with_new_media(order).tolist()))

    def _precompute(self, samples: Sequence[Sample], draws: Sequence[int] | None, label: str) -> None:
        """Computes features of some samples together with the other processes, and counts the broken media."""
        share = {"rank": self.world.rank, "world": self.world.size}
        with self.world.synced_errors(), suppress(_TooManyBadError):
            self.model.precompute(samples, draws, label=label, on_broken=self._give_up_on, **share)
        self.sync_broken_media()

    def _collated(self, step: int) -> list[tuple[Picked, Batch | None]]:
        """The rows of each forward pass, and the batch if all features are at hand. Runs in the background."""
        return [(picked, self._ready(picked)) for picked in self._picked(step)]

    def _picked(self, step: int) -> Iterator[Picked]:
        for micro in range(self.config.accumulate):
            rows = self.world.shard(self.order.positions(step * self.config.accumulate + micro))
            yield [
                (sample, chosen_target(sample.targets, self.seed, e, i), view_seed(self.seed, e, i))
                for (e, i), sample in zip(rows, self._samples_at(rows), strict=True)
            ]

    def _samples_at(self, rows: Sequence[tuple[int, int]]) -> Sequence[Sample]:
        return select(self.samples, [index for _, index in rows])

    def _ready(self, picked: Picked) -> Batch | None:
        kept = [row for row in picked if not self._is_bad(row[0])]
        if not kept:
            return None
        samples, targets, draws = map(list, zip(*kept, strict=True))
        features = self.model.get_cached(samples, draws)
        if features is None:
            return None
        # Copied into memory that a GPU reads by itself, here in the background.
        there = {name: replace(one, values=pinned(one.values, self.model.device)) for name, one in features.items()}
        return Batch(self.model.tokens(samples, targets), there)

    def _collate(self, picked: Picked) -> Batch | None:
        """A batch without the samples whose media are broken."""
        kept = [row for row in picked if not self._is_bad(row[0])]
        while kept:
            try:
                return self.model.collate(*map(list, zip(*kept, strict=True)))
            except MediaError:
                kept = [row for row in kept if self._readable(row[0], [row[2]])]
        return None

    def _is_bad(self, sample: Sample) -> bool:
        return any(name_of(medium) in self.bad for medium in sample.media.values())

    def _readable(self, sample: Sample, draws: Sequence[int] | None = None) -> bool:
        for modality, medium in sample.media.items():
            try:
                self.model.encode([Sample(sample.id, {modality: medium}, sample.prompt)], draws)
            except MediaError as error:
                self._note(sample, medium, error)
                return False
        return True

    def _note(self, sample: Sample, medium: Medium, error: MediaError) -> None:
        self.bad[name_of(medium)] = str(error)
        self.found[name_of(medium)] = sample.id, str(error)

    def _give_up_on(self, sample: Sample, medium: Medium, error: MediaError) -> None:
        """The same while features are computed: not all of a large data set, if the first part says that it fails."""
        self._note(sample, medium, error)
        if len(self.bad) > self.config.max_bad_media:
            raise _TooManyBadError

    def _count_bad(self) -> None:
        """Lists broken media. Raises `UserError` when there are more than `train.max_bad_media`."""
        found, self.found = self.found, {}
        if not found:
            return
        self.bad |= {medium: reason for medium, (_, reason) in found.items()}
        if self.world.is_main:
            rows = [json.dumps({"medium": name, "error": why}) for name, why in self.bad.items()]
            write_text(self.listed, "".join(f"{row}\n" for row in rows))
        if len(self.bad) > self.config.max_bad_media:
            sample, reason = next(iter(found.values()))
            raise UserError(
                f"sample `{sample}`: {reason}; {len(self.bad)} broken so far, "
                f"`train.max_bad_media` allows {self.config.max_bad_media} (all of them in {self.listed})"
            )
