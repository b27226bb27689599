"""The choices of a question, and the closed set of answers of a task."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from perceptune.config.recipe import Recipe
from perceptune.data.records import Record, json_type, short
from perceptune.errors import UserError, nearest
from perceptune.types import Sample

_LISTED = 12  # most choices that an error lists


def choices_of(sample: Sample) -> list[str]:
    """Return the `choices` of a sample: at least two texts, all different. Raises `UserError` otherwise."""
    given = sample.meta.get("choices")
    if not isinstance(given, list | tuple):
        raise UserError(f"sample `{sample.id}` has no list `choices` to be ranked")
    choices = [choice for choice in given if isinstance(choice, str) and choice.strip()]
    if len(choices) < len(given):
        raise UserError(f"sample `{sample.id}`: `choices` holds what is no text")
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(f"sample `{sample.id}`: `choices` must be at least two different texts")
    return choices


def stored_choices(recipe: Recipe) -> list[str]:
    """Return the closed set of answers of a run's task; empty if it has none."""
    own = None if recipe.task is None else recipe.task.options().get("choices")
    return [*(own or ())]


def check_choices(choices: Any) -> Any:
    """Return a recipe's `choices` if they are at least two different texts. Raises `ValueError` otherwise."""
    if choices is None:
        return None
    if isinstance(choices, str) or not isinstance(choices, Iterable):
        raise ValueError("`choices` is a list of texts, such as [cat, dog]")
    given = list(choices)
    for choice in given:
        if not isinstance(choice, str):
            raise ValueError(f"`choices` holds {json_type(choice)} ({choice}), not a text: put it in quotes")
        if not choice.strip():
            raise ValueError("`choices` holds an empty text")
    if len(given) < 2:
        raise ValueError(f"`choices` needs at least two texts, it has {len(given)}; a list is written [cat, dog]")
    return given


class ClosedSet:
    """The only answers of a task; `clean` extracts an answer from a text."""

    def __init__(self, choices: Sequence[str], clean: Callable[[str], str]) -> None:
        self.choices = list(choices)
        self._clean = clean
        self._given = frozenset(choices)
        forms: dict[str, str] = {}
        for choice in choices:
            form = clean(choice)
            if not form:
                raise UserError(f"`task.choices`: `{short(choice)}` has no answer in it")
            if form in forms:
                raise UserError(f"`task.choices`: `{short(forms[form])}` and `{short(choice)}` are the same answer")
            forms[form] = choice
        self._forms = frozenset(forms)

    def of(self, record: Record) -> list[str]:
        """Return the row's own `choices`, else those of the set."""
        own = record.values.get("choices")
        if own is None or own == "":
            return self.choices
        if isinstance(own, str) and (items := record.items("choices", own)) != [own]:
            own = items  # a list written as text, in a cell of a table
        if not isinstance(own, list):
            raise record.error(f"`choices` is {json_type(own)}, not a list of texts", "wrong-type")
        return [record.check_text(f"choices[{index}]", choice) for index, choice in enumerate(own)]

    def require(self, record: Record, targets: Sequence[str]) -> None:
        """Raise `RowError` naming the nearest choice if a target is none of the row's choices."""
        if self._given.issuperset(targets) and not record.values.get("choices"):
            return  # almost every row
        choices = self.of(record)
        forms = self._forms if choices is self.choices else {self._clean(choice) for choice in choices}
        for target in targets:
            if self._clean(target) not in forms:
                advice = _nearest(target, choices)
                raise record.error(f"`{short(target)}` is none of the {len(choices)} `choices`{advice}", "no-choice")


def _nearest(target: str, choices: Sequence[str]) -> str:
    if len(choices) <= _LISTED:
        return nearest(target, choices)
    [close] = difflib.get_close_matches(target, choices, n=1, cutoff=0.0)
    return f"; the nearest is `{short(close)}`"
