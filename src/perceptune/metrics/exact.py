"""Exact match: an answer counts when it equals one of its references, whitespace aside."""

from __future__ import annotations

import re
from collections.abc import Sequence

Scores = tuple[dict[str, float], list[dict[str, float]]]  # summary, one row per sample


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str] | None = None
) -> Scores:
    """`accuracy` of all samples and `accuracy_<group>` of each group's; 1 or 0 for each sample.

    Case is the caller's matter. A sample whose group is empty counts in `accuracy` only.
    """
    rows = []
    names = [""] * len(predictions) if groups is None else groups
    for prediction, accepted, group in zip(predictions, references, names, strict=True):
        hit = float(_squeeze(prediction) in {_squeeze(reference) for reference in accepted})
        rows.append({key: hit for key in ("accuracy", group_key(group)) if key})
    return averages(rows), rows


def averages(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each key over the rows that have it."""
    if not rows:
        raise ValueError("there is nothing to score")
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: _mean([row[key] for row in rows if key in row]) for key in keys}


def group_key(group: str) -> str:
    """The summary key of a group: `yes/no` gives `accuracy_yes_no`, a name without letters nothing."""
    slug = re.sub(r"\W+", "_", group.lower()).strip("_")
    return f"accuracy_{slug}" if slug else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _squeeze(text: str) -> str:
    return " ".join(text.split())
