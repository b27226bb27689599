"""The training data of a run: which samples, checked before the first step, and what to do with broken media."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from perceptune.checkpoint import write_text
from perceptune.errors import UserError
from perceptune.lazy import select
from perceptune.media import MediaError
from perceptune.model import AdaptedModel, Batch
from perceptune.order import DataOrder, chosen_target, subset
from perceptune.tasks.base import Task
from perceptune.types import Medium, Sample

# Questions come again and again, captions never: remembering all of them would grow with the data.
_REMEMBERED = 10_000


class Feed:
    """Batches of a task's training split for a model.

    `bad` maps each broken or missing medium to the reason; it is part of a checkpoint, so a resumed run leaves out what
    the uninterrupted one does.
    """

    def __init__(self, model: AdaptedModel, task: Task, run: Path) -> None:
        self.model, self.config, self.seed = model, model.recipe.train, model.recipe.seed
        self.samples = _training_samples(model, task)
        self.order = DataOrder(len(self.samples), self.config.batch_size, self.seed)
        self.bad: dict[str, str] = {}
        self.listed = run / "bad_media.jsonl"

    def digest(self) -> str:
        """Of everything a resumed run must find as it was."""
        digest = hashlib.sha256()
        for sample in self.samples:
            media = [(name, _identity(medium)) for name, medium in sample.media.items()]
            digest.update(repr((sample.id, sample.prompt, sample.targets, media)).encode())
        return digest.hexdigest()

    def batches(self, step: int) -> list[Batch]:
        """The forward passes of an optimizer step."""
        made = []
        for micro in range(self.config.accumulate):
            rows = self.order.positions(step * self.config.accumulate + micro)
            picked = [(self.samples[i], chosen_target(self.samples[i].targets, self.seed, e, i)) for e, i in rows]
            if batch := self._collate(picked):
                made.append(batch)
        return made

    def one_sample_per_medium(self, most: int) -> Iterator[Sample]:
        """Up to `most` readable samples in random order, each with a medium not seen before."""
        seen: set[Medium] = set()
        found = 0
        for index in torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.seed)).tolist():
            sample = self.samples[index]
            if found < most and sample.media and not seen.issuperset(sample.media.values()) and self._readable(sample):
                found += 1
                seen.update(sample.media.values())
                yield sample

    def _collate(self, picked: Sequence[tuple[Sample, str]]) -> Batch | None:
        """A batch without the samples whose media are broken."""
        kept = [(s, t) for s, t in picked if not any(_identity(m) in self.bad for m in s.media.values())]
        while kept:
            try:
                return self.model.collate([sample for sample, _ in kept], [target for _, target in kept])
            except MediaError:
                kept = [(sample, target) for sample, target in kept if self._readable(sample)]
        return None

    def _readable(self, sample: Sample) -> bool:
        for modality, medium in sample.media.items():
            try:
                self.model.encode([Sample(sample.id, {modality: medium}, sample.prompt)])
            except MediaError as error:
                self._count(_identity(medium), sample, str(error))
                return False
        return True

    def _count(self, medium: str, sample: Sample, reason: str) -> None:
        """Lists a broken medium. Raises `UserError` when there are more than `train.max_bad_media`."""
        self.bad[medium] = reason
        rows = [json.dumps({"medium": name, "error": why}) for name, why in self.bad.items()]
        write_text(self.listed, "".join(f"{row}\n" for row in rows))
        if len(self.bad) > self.config.max_bad_media:
            raise UserError(
                f"sample `{sample.id}`: {reason}; {len(self.bad)} broken so far, "
                f"`train.max_bad_media` allows {self.config.max_bad_media} (all of them in {self.listed})"
            )


def _identity(medium: Medium) -> str:
    return hashlib.sha256(medium).hexdigest() if isinstance(medium, bytes) else str(medium)


def _training_samples(model: AdaptedModel, task: Task) -> Sequence[Sample]:
    """The chosen samples of the first split; each can be tokenised and has something to learn from."""
    split = task.splits[0]
    rows = task.samples(split)
    chosen = select(rows, subset(len(rows), model.recipe.train.samples, model.recipe.seed))
    if not chosen:
        raise UserError(f"split `{split}` is empty: there is nothing to train on")
    checked: set[tuple[str, str]] = set()
    for sample in chosen:
        if not sample.targets:
            raise UserError(f"sample `{sample.id}` of split `{split}` has no targets to learn from")
        for target in sample.targets:
            if (sample.prompt, target) not in checked:
                model.text.training_ids(sample, target)
                if len(checked) < _REMEMBERED:
                    checked.add((sample.prompt, target))
    return chosen
