"""Samples that are stored together with their media: invalid ones are left out within a budget."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from perceptune.data.records import Record, RowError, json_type, short
from perceptune.data.tasks._rows import read_json, text_lines
from perceptune.data.tasks._task import GivenFiles
from perceptune.errors import UserError
from perceptune.types import Sample

_SHOWN = 5  # invalid samples that are listed


class Sources(GivenFiles):
    """Shards and data sets with media inside, whose samples may be invalid here and there."""

    class Options(GivenFiles.Options):
        """Options of rows, and the samples that may be left out."""

        prompt: str | None = Field(None, description="prompt of samples that have none")
        class_names: Path | tuple[str, ...] | None = Field(
            None, description="names of numbered classes: a list, or a file with one name a line or a JSON list"
        )
        skip_invalid: int | float = Field(
            0.05, ge=0, description="invalid samples per split (no targets, no medium, unreadable text) that may be "
            "left out: a number, or a fraction of all, of which one is always allowed; 0 = none",
        )  # fmt: skip

        @field_validator("skip_invalid")
        @classmethod
        def _is_number_or_fraction(cls, value: float) -> float:
            if isinstance(value, float) and value > 1:
                raise ValueError("is a whole number of samples, or a fraction between 0 and 1")
            return value

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.may_lack_prompt |= options.prompt is not None

    @abstractmethod
    def every_row(self, split: str) -> Iterator[Sample | RowError]:
        """Yield each sample of a split, or the error of an invalid one."""

    def _examined(self, split: str) -> Iterator[tuple[int, Sample | UserError]]:
        number, answer_types = 0, set[str]()
        try:
            for number, row in enumerate(self.every_row(split), 1):
                if isinstance(row, Sample):
                    answer_types.add(row.meta.get("answer_type", ""))
                yield number, row
            if not number:
                raise RowError(f"{self._given[split]} holds no samples", "no-samples")
            if answer_types:
                self._check_metric(split, answer_types)
        except UserError as error:
            yield number + 1, error

    def prompt_of(self, record: Record, key: str) -> str:
        """Return the row's prompt, else that of the recipe."""
        if self._options.prompt is not None and record.values.get(key) is None:
            return str(self._options.prompt)
        return record.prompt(key, allow_empty=self.may_lack_prompt)

    @cached_property
    def class_names(self) -> list[str]:
        """The names of numbered classes; empty if none are given."""
        given = self._options.class_names
        return named_classes(given) if isinstance(given, Path) else list(given or ())


class InvalidRows:
    """The invalid samples of a split, which are left out if they are few."""

    def __init__(self, split: str, budget: float, total: Callable[[], int]) -> None:
        """Allow `budget` samples, or this fraction of the `total`, which is counted when the first one is invalid."""
        self._split, self._budget, self._total = split, budget, total
        self._first: list[str] = []
        self._allowed = 0
        self.count = 0

    def add(self, error: RowError) -> None:
        """Leave out a sample. Raises `UserError` if they are too many, or if its answer is none of the choices."""
        if not self._budget or error.kind == "no-choice":
            raise error
        if not self.count:
            is_fraction = isinstance(self._budget, float)
            self._allowed = max(1, int(self._budget * self._total())) if is_fraction else int(self._budget)
        self.count += 1
        self._first = [*self._first, str(error)][:_SHOWN]
        if self.count > self._allowed:
            allowed = f"`skip_invalid: {self._budget}` lets {self._allowed:,} of {self._total():,} samples be left out"
            raise UserError(f"{self._first[0]}; {allowed}, and there are more such ones")

    def report(self, valid: int) -> None:
        """Print how many of the samples are left out, and the first ones. Raises `UserError` if none is `valid`."""
        if self.count and not valid:
            raise UserError(self._first[0])
        if self.count:
            listed = "".join(f"\n  {short(error, 300)}" for error in self._first)
            more = f"\n  ... and {self.count - len(self._first):,} more" if self.count > len(self._first) else ""
            print(
                f"{self._split}: {self.count:,} of {self.count + valid:,} samples are invalid and left out "
                f"(`skip_invalid: {self._budget}`):{listed}{more}",
                file=sys.stderr,
            )


def named_classes(path: Path) -> list[str]:
    """Read the names of numbered classes: one a line, a JSON list, or a JSON object of numbers with their names."""
    if path.suffix != ".json":
        names: Any = [line.strip() for line in text_lines(path)]
        while names and not names[-1]:
            names.pop()
    else:
        names = read_json(path)
        names = listed_names(names) if isinstance(names, dict) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: not the names of classes, one a line or a JSON list of texts")
    return names


def listed_names(names: dict[str, Any]) -> list[Any] | None:
    """Return the names of `{"0": "cat", "1": "dog"}` as a list; None if its keys are not the numbers from 0."""
    wanted = [str(number) for number in range(len(names))]
    return [names[key] for key in wanted] if names.keys() == set(wanted) else None


def class_name(record: Record, key: str, value: Any, names: list[str]) -> Any:
    """Return the name of the class whose number `key` has, or the names of a list. Raises `RowError` without one."""
    if isinstance(value, list):
        return [class_name(record, key, item, names) for item in value]
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, str) and number in names:
        return number
    if not isinstance(number, int) or isinstance(number, bool):
        shown = short(repr(value)) if isinstance(value, str) else json_type(value)
        raise record.error(f"`{key}` is {shown}, neither the number nor the name of a class", "wrong-type")
    if not 0 <= number < len(names):
        raise record.error(f"`{key}` is {number}, and the classes are 0 to {len(names) - 1}")
    return names[number]
