"""From the keys of a recipe to its task."""

from typing import Any

from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import leaf
from perceptune.config.schema import NamedPart
from perceptune.data.holdout_split import HoldoutSplit
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError


def make_task(recipe: Recipe) -> Task:
    """The recipe's task, with what it holds out of the training split as a split of its own."""
    if recipe.task is None:
        raise UserError("the recipe names no `task`: name one, or give your own data as `task: jsonl`")
    task = task_of(recipe.task, max_bad_media=recipe.train.max_bad_media)
    return task if recipe.train.hold_out is None else HoldoutSplit(task, recipe.train.hold_out)


def task_of(part: NamedPart, *, max_bad_media: int = 0) -> Task:
    """A task with its options."""
    module = leaf("tasks", part.name).module
    given = part.options()
    if max_bad_media and "check_files" in module.TASK.Options.model_fields:
        given.setdefault("check_files", False)  # missing media are counted while training instead
    task: Task = module.TASK(validate(module.TASK.Options, given, f"task `{part.name}`"))
    return task


def data_keys(name: str, place: str, split: str | None = None) -> dict[str, Any]:
    """Return the keys by which task `name` reads the data at `place`; see `Task.data_keys`.

    Raises `UserError` for a task that cannot be told a place.
    """
    task = leaf("tasks", name).module.TASK
    if task.data_option is None:
        keys = ", ".join(f"`task.{key}`" for key in task.Options.model_fields)
        raise UserError(f"task `{name}` takes no single place of its data (--data); its keys are {keys}")
    return {key: str(value) for key, value in task.data_keys(place, split).items()}


def validation_keys(name: str, place: str) -> dict[str, Any]:
    """The same for the data at `place` as the split `validation`."""
    if "validation" not in leaf("tasks", name).module.TASK.Options.model_fields:
        raise UserError(f"task `{name}` has its own splits: it takes no validation file (--validation)")
    return {"validation": place}
