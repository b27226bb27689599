"""The one training loop. Only the method is optimised; frozen parts are computed once where nothing trained lies below.

Resuming is exact: data order and learning rate are functions of the step, and a checkpoint holds the method, the
optimizer and the random state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from perceptune.building import build
from perceptune.checkpoint import (
    META,
    METHOD,
    RECIPE,
    load_method,
    read_recipe,
    require_same_base,
    save_description,
    write_tensors,
)  # fmt: skip
from perceptune.config import Recipe, load_recipe
from perceptune.errors import UserError
from perceptune.evaluation import judge, make_task, pick_samples, require_judgeable
from perceptune.feed import Feed
from perceptune.guard import interruptions, out_of_memory_hint, require_finite
from perceptune.model import AdaptedModel, Batch, count
from perceptune.order import learning_rate, total_steps
from perceptune.resume import Checkpoints, open_run, pack_optimizer, unpack_optimizer
from perceptune.runlog import Progress, RunLog, progress, read_log
from perceptune.tasks.base import Task, check_split
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
    bad: dict[str, str] = field(default_factory=dict)  # broken media and why


def train(
    recipe: Recipe | dict[str, Any] | str | Path | None = None, run: str | Path | None = None, *,
    overrides: Sequence[str] = (), resume: bool = False, trust: bool = False,
) -> TrainResult:  # fmt: skip
    """Trains a recipe's method into a run folder (default `runs/<name>`).

    With `resume` the run goes on bit by bit as if it had never stopped (float32, CPU); its recipe may then be left out,
    and names third-party code only with `trust`.
    Raises `UserError` for a mistake in recipe or data, for a run folder that is already in use, and for a loss that is
    not finite.
    """
    if recipe is None and resume and run is not None and (Path(run) / RECIPE).is_file():
        recipe = read_recipe(Path(run), trust=trust)
    given = None if recipe is None else load_recipe(recipe, overrides)
    run, settled = open_run(given, None if run is None else Path(run), resume=resume)
    with out_of_memory_hint(settled.train):
        model = build(settled, dtype=settled.train.precision)
        return Trainer(model, make_task(settled), run, resume=resume).fit()


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
        self.feed = Feed(self.model, task, run)
        self.steps = total_steps(self.config, len(self.feed.samples))
        self.model.lm.gradient_checkpointing = self.config.gradient_checkpointing
        self.model.plain = self.config.frozen_dropout == "official"  # dropped-out states must not be reused
        self.groups = model.method.param_groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for _, p in group["named"]], "name": group["name"]} for group in self.groups],
            lr=self.config.lr, betas=self.config.betas, eps=self.config.eps, weight_decay=self.config.weight_decay,
        )  # fmt: skip
        self.checkpoints = Checkpoints(run)
        self.state = State(data=self.feed.digest())
        if self.recipe.eval.split is not None:
            check_split(self.recipe.eval.split, task.splits)
        self.held_out = self._held_out() if self.recipe.eval.every is not None else []
        self._clock = time.monotonic()
        self.resumed = resume and self._restored()

    def fit(self) -> TrainResult:
        """The loop, to the end or to an interruption."""
        with interruptions() as interruption:
            if not self.resumed:
                self._start()
            with progress(self.steps, "train", self.state.step) as bar:
                while not (self._is_over() or interruption.wanted):
                    self._step(bar)
                    evaluated = self._evaluate_if_due()
                    if evaluated or interruption.wanted or self.state.step % self.config.save_every == 0:
                        self._save()
        interrupted = interruption.wanted and not self._is_over()
        if interrupted:
            self._save()
        else:
            self._finish()
        return TrainResult(self.run, self.state.step, self._seen(), self._seconds(), self.state.best, interrupted)

    def _is_over(self) -> bool:
        return self.state.step >= self.steps or self._patience_is_over()

    def _start(self) -> None:
        torch.manual_seed(self.recipe.seed)  # for the frozen dropout of the official code, the loop's only chance
        save_description(self.run, self.model)
        self.log = RunLog(self.run, resumed_at=None)
        most = self.config.standardize_samples if self.model.method.standardizes else 0
        chosen = []
        with progress(min(most, len(self.feed.samples)), "feature statistics") as bar:
            for sample in self.feed.one_sample_per_medium(most):
                chosen.append(sample)
                bar.advance()
        self.model.fit_statistics(chosen)
        self.log.write("start", steps=self.steps, samples=len(self.feed.samples), trained=count(self.model.method))

    def _step(self, bar: Progress) -> None:
        step = self.state.step
        batches = self.feed.batches(step)
        tokens = sum(batch.n_tokens for batch in batches)
        rates = {
            g["name"]: learning_rate(self.config, g["name"], step, self.steps) for g in self.optimizer.param_groups
        }
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        loss = self._backward(batches, tokens)
        norm = self._clip()
        require_finite(loss, norm, step + 1, self.checkpoints.where())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = step + 1
        if self.state.step % self.config.log_every == 0:
            self.log.write("step", step=self.state.step, samples=self._seen(), loss=loss, tokens=tokens,
                           lr=rates, seconds=round(self._seconds(), 3), grad_norm=norm)  # fmt: skip
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

    def _clip(self) -> float:
        """The gradient's norm before clipping."""
        given = [p for p in self.model.method.parameters() if p.grad is not None]
        limit = math.inf if self.config.clip is None else self.config.clip
        return float(torch.nn.utils.clip_grad_norm_(given, limit)) if given else 0.0

    def _held_out(self) -> Sequence[Sample]:
        """What is evaluated during training; that it can be judged is found out now, not after hours."""
        chosen = pick_samples(self.task, self._split(), self.recipe.eval.during_samples)
        require_judgeable(self.task, chosen)
        for start in range(0, len(chosen), 64):
            self.model.encode(chosen[start : start + 64])
        return chosen

    def _split(self) -> str:
        config = self.recipe.eval
        if config.during_split is not None:
            return config.during_split
        if "validation" not in self.task.splits:
            raise UserError(
                "`eval.every` chooses the best checkpoint on a `validation` split, and the task has "
                f"{', '.join(f'`{split}`' for split in self.task.splits)} only: name one by `eval.during_split`"
            )
        return "validation"

    def _evaluate_if_due(self) -> bool:
        every = self.recipe.eval.every
        if every is None or (self.state.step % every and self.state.step != self.steps):
            return False
        scores = judge(self.model, self.task, self.held_out, label=f"evaluate at step {self.state.step}")
        value = scores.summary[self.task.metric]
        where = {"step": self.state.step, "samples": self._seen(), "split": self._split()}
        self.log.write("eval", **where, evaluated=len(self.held_out), **scores.summary)
        if self.state.best is None or value > self.state.best:
            self.state.best, self.state.best_step = value, self.state.step
            self.state.evaluations_without_gain = 0
        else:
            self.state.evaluations_without_gain += 1
        return True

    def _seen(self) -> int:
        """Samples trained on so far."""
        return self.state.step * self.config.batch_size * self.config.accumulate

    def _patience_is_over(self) -> bool:
        patience = self.recipe.eval.patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def _finish(self) -> None:
        self._save()
        if not any(row["event"] == "end" for row in read_log(self.run)):  # a finished run may be "resumed" again
            self.log.write("end", step=self.state.step, samples=self._seen(), seconds=round(self._seconds(), 3),
                           best=self.state.best)  # fmt: skip

    def _save(self) -> None:
        self.state.seconds, self._clock, self.state.bad = self._seconds(), time.monotonic(), self.feed.bad
        tensors = pack_optimizer(self.optimizer, self.groups)
        self.checkpoints.save(self.state.step, self.model.method.state_dict(), tensors, vars(self.state))
        self._publish()

    def _publish(self) -> None:
        """The method that the run answers with: the best by the metric, or the last where there is none.

        Written after the checkpoint, and again when resuming from it, so a kill between the two is healed.
        """
        if self.recipe.eval.every is None or self.state.best_step == self.state.step > 0:
            write_tensors(self.run / METHOD, self.model.method.state_dict())

    def _restored(self) -> bool:
        """Takes up the newest checkpoint; False if none was written before the stop."""
        if (self.run / META).is_file():
            require_same_base(self.run, self.model)
        last = self.checkpoints.last()
        if last is None:
            if (self.run / METHOD).is_file():
                raise UserError(f"`{self.run}` has a trained method but no checkpoint: it cannot be resumed")
            return False
        tensors, state = self.checkpoints.read(last)
        if state["data"] != self.state.data:
            raise UserError(f"`{self.run}` cannot be resumed: its training data has changed since it was started")
        load_method(last / METHOD, self.model)
        unpack_optimizer(tensors, self.optimizer, self.groups)
        self.state = State(**state)
        self.feed.bad = dict(self.state.bad)
        self.log = RunLog(self.run, resumed_at=self.state.step)
        self._publish()
        return True

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._clock
