"""Construction of a recipe's task."""

from collections.abc import Sequence
from typing import Any

from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import leaf
from perceptune.config.schema import NamedPart
from perceptune.data.holdout_split import HoldoutSplit
from perceptune.data.lazy_rows import select
from perceptune.data.subset import sample_count, subset
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.types import Sample


def make_task(recipe: Recipe) -> Task:
    """Build the recipe's task; with `train.hold_out`, held-out training samples are a separate split."""
    if recipe.task is None:
        raise UserError("the recipe names no `task`: name one, or give your own data as `task: jsonl`")
    # If some media may be missing, they are counted during training instead.
    task = task_of(recipe.task, check_files=not recipe.train.max_bad_media)
    return task if recipe.train.hold_out is None else HoldoutSplit(task, recipe.train.hold_out)


def training_rows(recipe: Recipe, task: Task) -> Sequence[Sample]:
    """Return the rows of the task's first split that a recipe trains on. Raises `UserError` if there are none."""
    config, rows = recipe.train, task.samples(task.splits[0])
    seed = recipe.seed if config.samples_seed is None else config.samples_seed
    chosen = subset(len(rows), sample_count(len(rows), config.samples), seed)
    if not chosen:
        raise UserError(f"split `{task.splits[0]}` is empty: there is nothing to train on")
    return select(rows, chosen)


def task_of(part: NamedPart, what: str = "task `{name}`", *, check_files: bool = True) -> Task:
    """Build a task from its options; `what` names it in errors, `check_files` is the default of its option, if any."""
    kind = leaf("tasks", part.name).module.TASK
    given = {} if check_files or "check_files" not in kind.Options.model_fields else {"check_files": False}
    return kind(validate(kind.Options, given | part.options(), what.format(name=part.name)))


def data_keys(name: str, place: str, split: str | None = None) -> dict[str, Any]:
    """Return the keys with which task `name` reads the data at `place`; see `Task.data_keys`.

    Raises `UserError` for a task without a single location of its data.
    """
    task = leaf("tasks", name).module.TASK
    if task.data_option is None:
        keys = ", ".join(f"`task.{key}`" for key in task.Options.model_fields)
        raise UserError(f"task `{name}` takes no single place of its data (--data); its keys are {keys}")
    return {key: str(value) for key, value in task.data_keys(place, split).items()}


def validation_keys(name: str, place: str) -> dict[str, Any]:
    """Return the keys with which task `name` reads the data at `place` as split `validation`.

    Raises `UserError` for a task with its own splits.
    """
    if "validation" not in leaf("tasks", name).module.TASK.Options.model_fields:
        raise UserError(f"task `{name}` has its own splits: it takes no validation file (--validation)")
    return {"validation": place}
