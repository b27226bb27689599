"""The one training loop. Only the method is optimised; frozen parts are computed once where nothing trained lies below.

Resuming is exact: data order and learning rate are functions of the step, and a checkpoint holds the method, the
optimizer and the random state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceptune.building import build
from perceptune.checkpoint import METHOD, save_run, write_tensors
from perceptune.config import Recipe, load_recipe
from perceptune.errors import UserError, nearest
from perceptune.evaluation import judge, make_task, pick_samples
from perceptune.guard import interruptions, out_of_memory_hint, require_finite
from perceptune.media import MediaError
from perceptune.model import AdaptedModel, Batch, count
from perceptune.order import DataOrder, chosen_target, learning_rate, subset, total_steps
from perceptune.resume import BadMedia, Checkpoints, open_run, pack_optimizer, unpack_optimizer
from perceptune.runlog import Progress, RunLog, progress
from perceptune.tasks.base import Task
from perceptune.types import Sample


@dataclass(frozen=True)
class TrainResult:
    """Where a training left its model, and what it took."""

    run: Path
    steps: int
    samples: int
    seconds: float  # features, statistics and evaluations included, loading of the models not
    best: float | None  # best value of the task's metric seen during training
    interrupted: bool = False


@dataclass
class State:
    """What changes while training, beside tensors; saved as JSON."""

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    data: str = ""  # digest of the training samples: a resumed run must see the same


def train(
    recipe: Recipe | dict[str, Any] | str | Path | None = None, run: str | Path | None = None, *,
    overrides: Sequence[str] = (), resume: bool = False,
) -> TrainResult:  # fmt: skip
    """Trains a recipe's method into a run folder (default `runs/<name>`).

    With `resume` the run goes on bit by bit as if it had never stopped (float32, CPU); its recipe may then be left out.
    Raises `UserError` for a mistake in recipe or data, for a run folder that is already in use, and for a loss that is
    not finite.
    """
    given = None if recipe is None else load_recipe(recipe, overrides)
    run, settled = open_run(given, None if run is None else Path(run), resume=resume)
    model = build(settled, dtype=settled.train.precision)
    trainer = Trainer(model, make_task(settled), run, resume=resume)
    with out_of_memory_hint(settled.train):
        return trainer.fit()


class Trainer:
    """One run of one recipe."""

    def __init__(self, model: AdaptedModel, task: Task, run: Path, *, resume: bool = False) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise UserError("training in several processes is not supported yet: start one process")
        self.model: AdaptedModel = model.to(self.accelerator.device)
        self.recipe, self.config = model.recipe, model.recipe.train
        self.task, self.run = task, run
        self.samples = _training_samples(self.recipe, task)
        self.steps = total_steps(self.config, len(self.samples))
        self.order = DataOrder(len(self.samples), self.config.batch_size, self.recipe.seed)
        self.model.lm.gradient_checkpointing = self.config.gradient_checkpointing
        self.model.plain = self.config.frozen_dropout == "official"  # dropped-out states must not be reused
        self.groups = model.method.param_groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for _, p in group["named"]], "name": group["name"]} for group in self.groups],
            lr=self.config.lr, betas=self.config.betas, eps=self.config.eps, weight_decay=self.config.weight_decay,
        )  # fmt: skip
        self.checkpoints = Checkpoints(run)
        self.bad = BadMedia(run, self.config.max_bad_media)
        self.state = State(data=_digest(self.samples))
        self.held_out = self._held_out() if self.recipe.eval.every is not None else []
        self._clock = time.monotonic()
        if resume and self.checkpoints.last() is not None:
            self._restore()
        else:
            self._start()

    def fit(self) -> TrainResult:
        """The loop, to the end or to an interruption."""
        interrupted = False
        with progress(self.steps, "train", self.state.step) as bar, interruptions() as interruption:
            while self.state.step < self.steps and not interrupted and not self._patience_is_over():
                self._step(bar)
                self._evaluate_if_due()
                interrupted = interruption.wanted
                if interrupted or self.state.step % self.config.save_every == 0:
                    self._save()
        if not interrupted:
            self._finish()
        return TrainResult(self.run, self.state.step, self._seen(), self._seconds(), self.state.best, interrupted)

    def _start(self) -> None:
        self.log = RunLog(self.run, resumed_at=0)
        save_run(self.run, self.model)  # a run folder can be read from its first minute on
        self.model.fit_statistics(self._samples_for_statistics())
        self.log.write("start", steps=self.steps, samples=len(self.samples), trained=count(self.model.method))

    def _samples_for_statistics(self) -> list[Sample]:
        """One sample per distinct medium, up to `standardize_samples`."""
        chosen: list[Sample] = []
        if not self.model.method.standardizes:
            return chosen
        seen: set[Any] = set()
        for index in torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.recipe.seed)):
            sample = self.samples[int(index)]
            if sample.media and not seen.issuperset(sample.media.values()) and self._readable(sample):
                chosen.append(sample)
                seen.update(sample.media.values())
            if len(chosen) == self.config.standardize_samples:
                break
        return chosen

    def _step(self, bar: Progress) -> None:
        step = self.state.step
        batches = self._batches(step)
        tokens = sum(batch.n_tokens for batch in batches)
        rates = {
            g["name"]: learning_rate(self.config, g["name"], step, self.steps) for g in self.optimizer.param_groups
        }
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        loss = self._backward(batches, tokens)
        require_finite(loss, step + 1, self.checkpoints.where())
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = step + 1
        if self.state.step % self.config.log_every == 0:
            extra = {} if norm is None else {"grad_norm": norm}
            self.log.write("step", step=self.state.step, samples=self._seen(), loss=loss, tokens=tokens,
                           lr=rates, seconds=round(self._seconds(), 3), **extra)  # fmt: skip
        bar.advance(note=f"loss {loss:.3f}")

    def _backward(self, batches: Sequence[Batch], tokens: int) -> float:
        """Gradients of the mean over all supervised tokens of the step, however they fall into batches."""
        self._dropout(on=self.config.frozen_dropout == "official")
        total = 0.0
        for batch in batches:
            loss_sum, _ = self.model.loss(batch)
            self.accelerator.backward(loss_sum / max(tokens, 1))
            total += float(loss_sum.detach())
        self._dropout(on=False)
        return total / max(tokens, 1)

    def _dropout(self, *, on: bool) -> None:
        self.model.lm.model.train(on)

    def _clip(self) -> float | None:
        if self.config.clip is None:
            return None
        return float(torch.nn.utils.clip_grad_norm_(self.model.method.parameters(), self.config.clip))

    def _batches(self, step: int) -> list[Batch]:
        made = []
        for micro in range(self.config.accumulate):
            rows = self.order.positions(step * self.config.accumulate + micro)
            picked = [
                (self.samples[i], chosen_target(self.samples[i].targets, self.recipe.seed, e, i)) for e, i in rows
            ]
            if batch := self._collate(picked):
                made.append(batch)
        return made

    def _collate(self, picked: Sequence[tuple[Sample, str]]) -> Batch | None:
        """A batch without samples whose media are broken, which are counted and listed."""
        kept = [(sample, target) for sample, target in picked if sample.id not in self.bad.ids]
        while kept:
            try:
                return self.model.collate([sample for sample, _ in kept], [target for _, target in kept])
            except MediaError:
                kept = [(sample, target) for sample, target in kept if self._readable(sample)]
        return None

    def _readable(self, sample: Sample) -> bool:
        try:
            self.model.encode([sample])
        except MediaError as error:
            self.bad.add(sample.id, str(error))
            return False
        return True

    def _held_out(self) -> list[Sample]:
        """What is evaluated during training; that it can be judged is found out now, not after hours."""
        chosen = pick_samples(self.task, self._split(), self.recipe.eval.during_samples)
        summary, _ = self.task.score([""] * len(chosen), chosen)
        if self.task.metric not in summary:
            raise UserError(
                f"the {len(chosen)} samples evaluated during training have no `{self.task.metric}`"
                f"{nearest(self.task.metric, summary)}; raise `eval.during_samples`"
            )
        return chosen

    def _split(self) -> str:
        config = self.recipe.eval
        held_out = "validation" if "validation" in self.task.splits else config.split
        return config.during_split or held_out or self.task.splits[-1]

    def _evaluate_if_due(self) -> None:
        every = self.recipe.eval.every
        if every is None or (self.state.step % every and self.state.step != self.steps):
            return
        scores = judge(self.model, self.task, self.held_out, label=f"evaluate at step {self.state.step}")
        value = scores.summary[self.task.metric]
        where = {"step": self.state.step, "samples": self._seen(), "split": self._split()}
        self.log.write("eval", **where, evaluated=len(self.held_out), **scores.summary)
        if self.state.best is None or value > self.state.best:
            self.state.best, self.state.best_step = value, self.state.step
            self.state.evaluations_without_gain = 0
            write_tensors(self.run / METHOD, self.model.method.state_dict())
        else:
            self.state.evaluations_without_gain += 1

    def _seen(self) -> int:
        """Samples trained on so far."""
        return self.state.step * self.config.batch_size * self.config.accumulate

    def _patience_is_over(self) -> bool:
        patience = self.recipe.eval.patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def _finish(self) -> None:
        self._save()
        self.log.write("end", step=self.state.step, seconds=round(self._seconds(), 3), best=self.state.best)

    def _save(self) -> None:
        self.state.seconds, self._clock = self._seconds(), time.monotonic()
        tensors = pack_optimizer(self.optimizer, self.groups)
        self.checkpoints.save(self.state.step, self.model.method.state_dict(), tensors, vars(self.state))
        if self.recipe.eval.every is None:  # no metric to choose by: the last is what the run answers with
            write_tensors(self.run / METHOD, self.model.method.state_dict())

    def _restore(self) -> None:
        method, tensors, state = self.checkpoints.read(self.model)
        if state["data"] != self.state.data:
            raise UserError(f"`{self.run}` cannot be resumed: its training data has changed since it was started")
        self.model.method.load_state_dict(method)
        unpack_optimizer(tensors, self.optimizer, self.groups)
        self.state = State(**state)
        self.log = RunLog(self.run, resumed_at=self.state.step)

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._clock


def _training_samples(recipe: Recipe, task: Task) -> list[Sample]:
    split = task.splits[0]
    rows = task.samples(split)
    chosen = [rows[i] for i in subset(len(rows), recipe.train.samples, recipe.seed)]
    if not chosen:
        raise UserError(f"split `{split}` is empty: there is nothing to train on")
    for sample in chosen:
        if not sample.targets:
            raise UserError(f"sample `{sample.id}` of split `{split}` has no targets to learn from")
    return chosen


def _digest(samples: Sequence[Sample]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.id, sample.prompt, sample.targets)).encode())
    return digest.hexdigest()
