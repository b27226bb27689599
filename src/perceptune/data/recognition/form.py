"""The result of a recognition: a reader with its options, and the guesses that led to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptune.errors import UserError


@dataclass(frozen=True)
class Form:
    """A data set as one reader reads it."""

    what: str  # such as `audio in folders named by class`
    reader: str  # name of the task
    options: dict[str, Any]  # its keys
    guesses: tuple[str, ...] = ()  # what was guessed, each with the key that says otherwise
    answers: str = ""  # column of the targets, or `folder`: a hint of what they are
    splits: tuple[str, ...] = ("train",)  # those that the options name

    @property
    def task(self) -> dict[str, Any]:
        """Return the keys of a recipe's `task`."""
        return {"name": self.reader, **self.options}


def several(place: Path | str, readings: Sequence[tuple[str, str]]) -> UserError:
    """Return the error for a place with several plausible readings, each a description and the flags that choose it."""
    named = "; ".join(f"{what}: {flags}" for what, flags in readings)
    return UserError(f"{place} can be read in several ways, choose one by its flags: {named}")


def split_keys(split: str, place: Path | str) -> dict[str, str]:
    """Return the keys of a reader of files for data that is read as `split`; every reader has a `train`."""
    return {"train": str(place), split: str(place)}
