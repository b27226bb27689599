"""Errors of a data set, counted by kind."""

from collections import Counter
from collections.abc import Callable
from typing import Any

# Meaning of each kind, in the order of the report.
PROBLEM_KINDS = {
    "refused": "the reader stopped here",
    "no-samples": "the file holds no rows",
    "long-line": "a line is longer than a row may be",
    "not-utf8": "text that is not UTF-8",
    "invalid-json": "a line that is not JSON",
    "nan": "NaN or Infinity, which are not JSON",
    "not-an-object": "JSON, but no object",
    "missing-key": "a key is not there",
    "wrong-type": "a value of the wrong type",
    "wrong-value": "a value that cannot be used",
    "bad-text": "half of a surrogate pair",
    "empty-id": "an empty id",
    "empty-prompt": "a question without text",
    "no-targets": "no answer to learn",
    "empty-target": "an answer or caption without text",
    "empty-medium": "the name of a medium is empty",
    "address": "an address in place of a file",
    "duplicate-id": "an id that an earlier row has",
    "no-encoder": "a medium for which the recipe has no encoder",
    "text": "a text that the recipe cannot take",
    "missing-medium": "a medium that is no file",
    "broken-medium": "a medium that cannot be read",
}


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
