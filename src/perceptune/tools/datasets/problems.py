"""Errors of a data set, counted by kind."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

# Meaning of each kind, in the order of the report.
PROBLEM_KINDS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("problems.yaml").read_text(encoding="utf-8"))


class Problems:
    """Counts errors of each kind and keeps the messages of the first few."""

    def __init__(self, shown: int) -> None:
        self._shown = shown
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, kind: str, message: str | Callable[[], str]) -> None:
        """Count an error; a callable message is evaluated only if it is shown."""
        self._counts[kind] += 1
        first = self._first.setdefault(kind, [])
        if len(first) < self._shown:
            first.append(message if isinstance(message, str) else message())

    def as_dict(self) -> dict[str, Any]:
        """Return `{kind: {"count": n, "what": meaning, "first": [message, ...]}}`, in the order of `KINDS`."""
        order = [*PROBLEM_KINDS, *sorted(self._counts.keys() - PROBLEM_KINDS.keys())]
        return {
            kind: {"count": self._counts[kind], "what": PROBLEM_KINDS.get(kind, ""), "first": self._first[kind]}
            for kind in order
            if kind in self._counts
        }
