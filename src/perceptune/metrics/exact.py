"""Exact match: an answer counts when it equals one of its references, whitespace aside."""

from __future__ import annotations

import re
from collections.abc import Sequence

Scores = tuple[dict[str, float], list[dict[str, float]]]  # summary, one row per sample


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str] | None = None
) -> Scores:
    """`accuracy` over all samples and `accuracy_<group>` over each group's; 1 or 0 for each sample.

    Case is the caller's matter. A sample whose group is empty counts in `accuracy` only.
    """
    if not predictions:
        raise ValueError("there are no predictions to score")
    hits = [
        float(_squeeze(prediction) in {_squeeze(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    members: dict[str, list[float]] = {"accuracy": hits}
    if groups is not None:
        for group, hit in zip(groups, hits, strict=True):
            if slug(group):
                members.setdefault(f"accuracy_{slug(group)}", []).append(hit)
    return {key: sum(values) / len(values) for key, values in members.items()}, [
        {"accuracy": hit} for hit in hits
    ]


def slug(group: str) -> str:
    """A group's name as part of a key: `yes/no` becomes `yes_no`."""
    return re.sub(r"\W+", "_", group.lower()).strip("_")


def _squeeze(text: str) -> str:
    return " ".join(text.split())
