"""The training loop. Only the method is optimised; frozen parts below all trained ones are computed once.

Resuming is exact: data order, learning rate and random state are functions of the step, and a checkpoint holds the
method and the optimizer. With several processes each has its part of every batch; gradients are summed over all and
divided by the tokens of the whole step, so their number changes the duration and nothing else.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptune.config.overrides import Override
from perceptune.config.recipe import Recipe, load_recipe
from perceptune.data.build_task import make_task
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.evaluation.first_look import evaluate_at_end
from perceptune.evaluation.model_card import write_card
from perceptune.evaluation.reference_answers import ASKED, save_training_references
from perceptune.methods.base import count_trained
from perceptune.models import run_folder
from perceptune.models.base import AdaptedModel
from perceptune.models.build import build, dtypes_of, settle_training
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.checkpoints import Checkpoints, State, open_run
from perceptune.training.init_from import Start, initialize
from perceptune.training.optimizer import MethodOptimizer, require_finite
from perceptune.training.reward import make_objective
from perceptune.training.safeguards import Interruption, explain_out_of_memory, interruptions, out_of_memory_hint
from perceptune.training.sampler import total_steps
from perceptune.training.time_budget import StepTimer, require_minutes
from perceptune.training.validation import Validator
from perceptune.utils.distributed import World
from perceptune.utils.run_log import Progress, RunLog, progress, read_log
from perceptune.utils.tensors import read_numbers
from perceptune.utils.trackers import Trackers, require_trackers


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training."""

    run: Path
    steps: int
    samples: int
    seconds: float  # includes features, statistics and evaluations, but not model loading
    best: float | None  # best value of the task's metric seen during training
    interrupted: bool = False
    minutes: float | None = None  # from the start of the trainer to its last step, if they were limited


def train(
    recipe: Recipe | dict[str, Any] | str | Path | None = None, run: str | Path | None = None, *,
    overrides: Sequence[Override] = (), resume: bool = False, trust: bool = False, join_timeout: float | None = None,
    minutes: float | None = None,
) -> TrainResult:  # fmt: skip
    """Train a recipe's method into a run folder (default `runs/<name>`).

    With `resume` the run continues bit by bit as if uninterrupted (float32, CPU, same number of processes); its recipe
    may then be left out, and names third-party code only with `trust`. Started as one of several processes it waits for
    the others, at most `join_timeout` seconds (600 by default). `minutes`, features and evaluations included, loading
    not, replace the recipe's length: some steps are timed, and how many fit is stored in the run's recipe.
    Raises `UserError` for a mistake in recipe or data, for a run folder that is already in use, and for a loss that is
    not finite.
    """
    if minutes is not None:
        require_minutes(minutes, overrides, resume=resume)
    with contextlib.ExitStack() as held:
        folder = None if run is None else Path(run)
        result = _train(recipe, folder, overrides, resume, trust, World(join_timeout), held, minutes)
    if not result.interrupted:
        evaluate_at_end(result.run, trust=trust, join_timeout=join_timeout)
    return result


def _train(
    recipe: Recipe | dict[str, Any] | str | Path | None, folder: Path | None, overrides: Sequence[Override],
    resume: bool, trust: bool, world: World, held: contextlib.ExitStack, minutes: float | None,
) -> TrainResult:  # fmt: skip
    """Train in a `world`; `held` keeps the lock on the run folder."""

    def opened() -> tuple[Path, Recipe, dict[str, str]]:
        own = resume and recipe is None and folder is not None and (folder / run_folder.RECIPE).is_file()
        named = run_folder.read_recipe(folder, trust=trust) if own and folder is not None else recipe
        given = None if named is None else load_recipe(named, overrides)
        require_trackers(() if given is None else given.train.report_to)
        opened, settled = open_run(given, folder, held, resume=resume)
        resumed = (opened / run_folder.RECIPE).is_file()  # otherwise the run starts again, with the recipe now given
        return opened, *settle_training(settled, world.device, resumed=resumed)

    folder, settled, precision = world.run_on_main(opened)
    with world.collective(), out_of_memory_hint(settled.train):
        with world.synced_errors():
            model, task = build(settled, dtype=settled.train.precision, ready=False), make_task(settled)
            if resume and (folder / run_folder.META).is_file():
                run_folder.require_same_base(folder, model)
            model.cleaning = task.cleaning
            description = run_folder.describe_run(model)  # now, while each process has the whole weights of the LM
        model.place(world)
        with world.synced_errors():
            trainer = Trainer(model, task, folder, world, description, trust=trust, precision=precision)
        with contextlib.closing(trainer.loader):
            return trainer.fit(resume=resume, minutes=minutes)


class Trainer:
    """One run of one recipe, in one of the processes of a `World`."""

    def __init__(
        self, model: AdaptedModel, task: Task, run: Path, world: World, description: Mapping[str, Any], *,
        trust: bool = False, precision: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._began = time.monotonic()
        self.model, self.recipe, self.config, self.trust = model, model.recipe, model.recipe.train, trust
        self.run, self.world, self.description = run, world, description
        self.precision = precision or dtypes_of(self.recipe)  # its dtypes, and the reason for them
        self.model.setup(training=True, sharded=world.is_sharded)
        self.standardized = self.config.standardize_samples if model.method.standardizes else 0  # media for statistics
        self.loader = BatchLoader(self.model, task, run, world)
        self.steps = self.loader.steps
        self.dummy_batch = self.loader.dummy_batch() if world.is_sharded else None
        self.objective = make_objective(model, task, self.loader.samples, world)
        self.optimizer = MethodOptimizer(model.method, self.config, self.steps)
        self.checkpoints, self.state = Checkpoints(run), State(data=self.loader.all.digest)
        self.held_out = Validator(self.model, task, world, self.loader.order)
        self.log: RunLog | None = None  # on the main process
        self._clock = time.monotonic()

    def fit(self, *, resume: bool = False, minutes: float | None = None) -> TrainResult:
        """Run the loop, from the start or the last checkpoint, to the end or to an interruption."""
        with self.world.same_on_all_ranks():
            if len(set(self.world.all_gather(self.state.data))) > 1:
                raise UserError("the processes see different training data: give all of them the same files")
        if minutes is not None:
            self._settle_steps(minutes)
        resumed = resume and self._restored()
        if not resumed:
            self._claim()
        # A Ctrl-C ends this at once: features computed so far are kept.
        self.loader.precompute(self.standardized)
        with interruptions() as interruption:
            if not resumed:
                self._start()
            stopped = False
            with progress(self.steps, "train", self.state.step, timed=10) as bar:
                while not (stopped or self._is_over()):
                    stopped = self._step(bar, interruption)
                    evaluated = self._evaluate_if_due()
                    if evaluated or (self.state.step % self.config.save_every == 0 and not stopped):
                        self._save()
        taken = None if minutes is None else (time.monotonic() - self._began) / 60
        interrupted = stopped and not self._is_over()
        self._save()
        with self.world.synced_errors():
            if not interrupted:
                self._log_end()
            if self.log is not None:
                self.log.close()
        state, seconds = self.state, self._seconds()
        return TrainResult(self.run, state.step, state.samples, seconds, state.best, interrupted, taken)

    def _settle_steps(self, minutes: float) -> None:
        """Time some steps, and put their number into the recipe. Writes nothing into the run folder."""
        self.loader.precompute_statistics(self.standardized)
        timer = StepTimer(self.loader, self.optimizer, self.held_out, self._began)
        self.recipe = self.model.recipe = timer.choose_steps(self._initialize, self._take, minutes)
        self.state = State(data=self.state.data)
        self.config = self.loader.config = self.optimizer.config = self.recipe.train
        self.held_out.config = self.recipe.eval
        self.steps = self.loader.steps = self.optimizer.steps = total_steps(self.config, self.loader.order)

    def _take(self, step: int, bar: Progress) -> None:
        self.state.step = step
        self._step(bar, Interruption())

    def _is_over(self) -> bool:
        patience, without_gain = self.recipe.eval.patience, self.state.evaluations_without_gain
        return self.state.step >= self.steps or (patience is not None and without_gain >= patience)

    def _claim(self) -> None:
        """Create the run folder's first files."""
        with self.world.synced_errors():
            if self.world.is_main:
                self.checkpoints.clean()
                run_folder.save_description(self.run, self.recipe, {**self.description, **self.loader.all.notes()})
                self.log = self._log(resumed_at=None)

    def _initialize(self) -> Start | None:
        return initialize(self.loader, self.description["base"], self.standardized, trust=self.trust)

    def _start(self) -> None:
        start = self._initialize()
        self._write("start", steps=self.steps, samples=len(self.loader.samples),
                    trained=count_trained(self.model.method), precision=self.precision, **self.model.run_info(),
                    init_from=start._asdict() if start else None)  # fmt: skip

    def _step(self, bar: Progress, interruption: Interruption) -> bool:
        """Take one optimizer step; return whether any process was interrupted."""
        step = self.state.step
        rates = self.optimizer.set_lr(step)
        # For dropout: a function of the step, so that a checkpoint need not hold it.
        torch.manual_seed(((self.recipe.seed << 32) + step) * self.world.size + self.world.rank & (2**63 - 1))
        losses, tokens, samples, stop = self._gradients(step, interruption)
        *losses, norm = read_numbers([*losses, self.optimizer.clip()])  # the only synchronisation with a GPU in a step
        loss = sum(losses) / max(tokens, 1)
        with self.world.same_on_all_ranks():
            require_finite(loss, norm, step + 1, self.checkpoints.where)
        self.optimizer.step(step)
        self.state.step = step + 1
        self.state.samples += samples
        if self.state.step % self.config.log_every == 0:
            self._write("step", step=self.state.step, samples=self.state.samples, loss=loss, tokens=tokens,
                        lr=rates, seconds=round(self._seconds(), 3), grad_norm=norm,
                        **self.objective.values)  # fmt: skip
        bar.advance(note=f"loss {loss:.3f}")
        return stop

    def _gradients(self, step: int, interruption: Interruption) -> tuple[Sequence[Tensor | float], int, int, bool]:
        """Add gradients of the mean over the step's supervised tokens, however they fall into batches and processes.

        Returns the losses that this is the mean of, the number of tokens and samples, and whether any process was
        interrupted. The losses of a single process stay on the device.
        """
        losses: Sequence[Tensor | float] = []
        own: Sequence[int] = (0, 0)
        error: UserError | OSError | None = None
        try:
            losses, *own = self.objective.add_gradients(self.loader.batches(step), self.dummy_batch)
        except (UserError, OSError, MemoryError, RuntimeError) as caught:
            explained = explain_out_of_memory(caught, self.config)
            if self.world.is_sharded or not isinstance(explained, UserError | OSError):
                raise explained from (None if explained is caught else caught)  # sharded: the others cannot be notified
            error = explained
        loss = sum(read_numbers(losses)) if self.world.size > 1 else 0.0
        counts = [loss, *own, interruption.wanted, error is not None, len(self.loader.broken.found)]
        total, tokens, samples, stop, failed, broken = self.world.all_reduce(self.optimizer.parameters, counts)
        if failed:
            self.world.raise_everywhere(error)
        if broken:
            self.loader.broken.sync()
        self.optimizer.scale_grads(max(tokens, 1))
        return [total] if self.world.size > 1 else losses, int(tokens), int(samples), bool(stop)

    def _evaluate_if_due(self) -> bool:
        if self.recipe.eval.every is None or not self.held_out.is_due(self.state.step, self.steps):
            return False
        self.loader.wait()
        with self.optimizer.averaged():
            scores = self.held_out.validate(self.state.step)
        value = scores.summary[self.held_out.task.metric]
        where = {"step": self.state.step, "samples": self.state.samples, "split": self.held_out.split}
        self._write("eval", **where, evaluated=len(self.held_out.samples), **scores.summary)
        self.state.add_score(value)
        return True

    def _log(self, resumed_at: int | None) -> RunLog:
        names, given = self.config.report_to, self.recipe.model_dump(mode="json")
        trackers = Trackers(names, self.recipe.name, self.run, given) if names else None
        return RunLog(self.run, resumed_at=resumed_at, trackers=trackers)

    def _write(self, event: str, **values: Any) -> None:
        if self.log is not None:
            self.log.write(event, **values)

    def _log_end(self) -> None:
        if self.log is None or any(row["event"] == "end" for row in read_log(self.run)):
            return  # a finished run may be "resumed" again
        self.log.write("end", step=self.state.step, samples=self.state.samples, seconds=round(self._seconds(), 3),
                       best=self.state.best)  # fmt: skip
        is_saved = (self.run / run_folder.METHOD).is_file()
        if is_saved and not self.world.is_sharded:  # else all processes would have to generate
            save_training_references(self.run, self.model, self.loader.one_sample_per_medium(ASKED))
        write_card(self.run)

    def _save(self) -> None:
        self.state.seconds, self._clock, self.state.bad = self._seconds(), time.monotonic(), self.loader.broken.reasons
        with self.world.synced_errors():
            if self.world.is_main:
                method, moments = self.model.method.state_dict(), self.optimizer.state_dict()
                self.checkpoints.save(self.state.step, method, moments, vars(self.state))
                self._publish()

    def _publish(self) -> None:
        """Write the method that the run answers with: the best by the metric, or the last if none was evaluated yet.

        Written after the checkpoint, and again when resuming from it, which repairs a kill between the two.
        """
        if self.state.best is None or self.state.best_step == self.state.step:
            with self.optimizer.averaged():
                run_folder.write_tensors(self.run / run_folder.METHOD, self.model.method.state_dict())

    def _restored(self) -> bool:
        """Load the newest checkpoint; return False if there is none."""
        last = self.world.run_on_main(self.checkpoints.to_resume)
        if last is None:
            return False
        with self.world.synced_errors():
            tensors, state = self.checkpoints.read(last)
            if state["data"] != self.state.data:
                raise UserError(f"`{self.run}` cannot be resumed: its training data has changed since it was started")
            run_folder.load_method(last / run_folder.METHOD, self.model)
            self.optimizer.load_state_dict(tensors)
        state.setdefault("samples", state["step"] * self.config.batch_size * self.config.accumulate)  # added later
        self.state = State(**state)
        self.loader.broken.reasons = dict(self.state.bad)
        with self.world.synced_errors():
            if self.world.is_main:
                self.log = self._log(resumed_at=self.state.step)
                self._publish()
        return True

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._clock
