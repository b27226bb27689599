"""Replacement of a recipe's task or method by an override: which of the recipe's keys are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from perceptune.config.hold_out import HELD_OUT, held_out_splits
from perceptune.config.overrides import METHODS, Override
from perceptune.config.registry import leaf
from perceptune.errors import UserError

# Keys of a task for reading rows and scoring answers; all others describe the location and content of the data.
OF_ANY_DATA = (
    *("metric", "lowercase", "first_line", "parse_lists", "allow_empty_prompt", "check_files", "prompt"),
    *("choices", "metric_tokenizer", "group_rows"),
)
EVALUATED = ("split", "during_split")  # keys of `eval` that name a split of the task


def part_names(data: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the names of a recipe's task and method as they are written."""
    parts = {section: data.get(section) for section in ("task", "method")}
    return {section: part.get("name") if isinstance(part, dict) else part for section, part in parts.items()}


def drop_foreign_keys(
    data: dict[str, Any], before: Mapping[str, str | None], overrides: Sequence[Override]
) -> list[str]:
    """Remove the recipe's own keys that only made sense for the task or method that `overrides` have replaced.

    `before` holds the names before the overrides. Keys that the new part has too are kept, except those that describe
    the old task's data. Returns the removed keys.
    """
    given = [one.partition("=")[0] if isinstance(one, str) else one[0] for one in overrides]
    kinds = {"task": "tasks", "method": METHODS.get(str(data.get("backbone", "splice")), "methods")}
    dropped: list[str] = []
    for section, name in part_names(data).items():
        old = before[section]
        if old is None or name is None or _part_class(kinds[section], old) is _part_class(kinds[section], name):
            continue
        part = data[section]
        foreign = _foreign_keys(kinds[section], name, part) if isinstance(part, dict) else []
        dropped += [f"{section}.{key}" for key in foreign if not _is_given(f"{section}.{key}", given)]
        if section == "task":
            dropped += _lacking_splits(data, name, given, dropped)
    for key in dropped:
        section, _, last = key.partition(".")
        del data[section][last]
    return dropped


def _part_class(kind: str, name: str) -> Any:
    """Return the class of a leaf; None for an unknown one, which is reported when it is used."""
    try:
        module = leaf(kind, str(name)).module
    except UserError:
        return None
    return module.TASK if kind == "tasks" else module.METHOD


def _foreign_keys(kind: str, new: str, part: Mapping[str, Any]) -> list[str]:
    """Return the keys of a part that its new class does not have, and those of a task that describe the old data."""
    wanted = _part_class(kind, new)
    if wanted is None:
        return []
    about_data = {*part} - {*OF_ANY_DATA} if kind == "tasks" else set()
    if kind == "tasks" and "metric" not in part:  # the old task's own metric, which goes with it
        about_data |= {"metric_tokenizer"}
    return [key for key in part if key != "name" and (key in about_data or key not in wanted.Options.model_fields)]


def _is_given(key: str, given: Sequence[str]) -> bool:
    return any(one == key or one.startswith(f"{key}.") for one in given)


def _lacking_splits(data: Mapping[str, Any], name: str, given: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """Return the keys of `eval` that name a split which the new task does not have."""
    evaluation, task, wanted = data.get("eval"), data["task"], _part_class("tasks", name)
    train = data.get("train")
    made = held_out_splits(train.get("hold_out") if isinstance(train, dict) else None)
    if not isinstance(evaluation, dict) or wanted is None:
        return []
    options = {} if isinstance(task, str) else {
        key: value for key, value in task.items() if key != "name" and f"task.{key}" not in dropped
    }  # fmt: skip
    try:
        splits = wanted(wanted.Options.model_validate(options)).splits
    except (UserError, ValueError, TypeError):  # invalid or missing keys are reported when the task is created
        return []
    return [
        f"eval.{key}"
        for key in EVALUATED
        if evaluation.get(key) not in (None, HELD_OUT, *made, *splits) and not _is_given(f"eval.{key}", given)
    ]
