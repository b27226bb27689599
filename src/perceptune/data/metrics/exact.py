"""Exact match: an answer counts when it equals one of its references, whitespace and a final period aside."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from perceptune.data.metrics.base import Groups, Needs, Scored, scored_by_group, zipped

NEEDS = Needs(by_group="accuracy")


class Options(BaseModel):
    """How strictly texts are compared."""

    model_config = ConfigDict(extra="forbid")

    lowercase: bool = False  # compare in lower case


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    options: Options = Options(),  # noqa: B008
    *,
    groups: Groups | None = None,
) -> Scored:
    """`accuracy` of all samples and `accuracy_<group>` of each group's; 1 or 0 for each sample.

    Raises `ValueError` if there are no samples, or one without references.
    """
    hits = [
        float(_squeeze(prediction, options) in {_squeeze(reference, options) for reference in accepted})
        for prediction, accepted in zipped(predictions, references)
    ]
    return scored_by_group(hits, groups, {"metric": "exact", **options.model_dump()})


def _squeeze(text: str, options: Options) -> str:
    squeezed = " ".join(text.split())
    while squeezed.endswith("."):
        squeezed = squeezed.rstrip(".").rstrip()
    return squeezed.lower() if options.lowercase else squeezed
