"""Evaluation during training, which selects the best method."""

from collections.abc import Sequence

from perceptune.data.holdout_split import is_test, selecting_splits
from perceptune.data.tasks.base import Task, check_split
from perceptune.errors import UserError
from perceptune.evaluation.controls import shuffle_media
from perceptune.evaluation.runner import EvalOutput, check_has_references, predict_and_score, select_subset
from perceptune.models.base import AdaptedModel
from perceptune.models.consensus import uses_consensus
from perceptune.models.document_frequencies import training_frequencies
from perceptune.models.neighbours import needs_neighbours, training_neighbours
from perceptune.training.sampler import TrainingSampler
from perceptune.types import Sample
from perceptune.utils.distributed import World


class Validator:
    """Evaluates a fixed set of samples every `eval.every` steps, or after each epoch of `order`; else does nothing.

    Whether they can be evaluated and their media read is checked here, before training.
    """

    def __init__(self, model: AdaptedModel, task: Task, world: World, order: TrainingSampler) -> None:
        self.model, self.task, self.world, self.order = model, task, world, order
        self.config, self._accumulate = model.recipe.eval, model.recipe.train.accumulate
        if self.config.split is not None:
            check_split(self.config.split, task.splits)
        if self.config.at_end:  # rather now than after the training
            last = select_subset(task, self.config.split or task.splits[-1], self.config.samples)
            check_has_references(task, last)
            shuffle_media(last, 0)
        if uses_consensus(model.recipe):
            model.frequencies = training_frequencies(model.recipe, task)
        if needs_neighbours(model.recipe):
            model.neighbours = training_neighbours(model.recipe, model.stores, task)
        self.samples: Sequence[Sample] = []
        if self.config.every is None:
            return
        self.split = self._split()
        self.samples = select_subset(task, self.split, self.config.during_samples)
        check_has_references(task, self.samples)
        model.precompute(self.samples, label="features for evaluation", rank=world.rank, world=world.size)

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether an evaluation is due after this step."""
        if self.config.every is None or step == steps:
            return self.config.every is not None
        if self.config.every != "epoch":
            return step % self.config.every == 0
        before, now = (self.order.epochs_in(n * self._accumulate) for n in (step - 1, step))
        return now > before

    def validate(self, step: int) -> EvalOutput:
        """Return answers and scores, the same on every process."""
        return predict_and_score(self.model, self.task, self.samples, self.world, label=f"evaluate at step {step}")

    def _split(self) -> str:
        if (named := self.config.during_split) is not None:
            if is_test(named):
                raise UserError(
                    f"`eval.during_split: {named}` would choose the best checkpoint on test data, and a test result "
                    "would say nothing any more: keep training samples for it by `train.hold_out`"
                )
            return named
        found = selecting_splits(self.task.splits)
        if not found:
            raise UserError(
                "`eval.every` chooses the best checkpoint on a `validation` split, and the task has "
                f"{', '.join(f'`{split}`' for split in self.task.splits)} only: "
                "name one by `eval.during_split`, or keep training samples for it by `train.hold_out`"
            )
        return found[0]
