"""Exact match: an answer counts when it equals one of its references, whitespace and a final period aside."""

from collections.abc import Sequence

from perceptune.data.metrics.base import Groups, MetricOptions, Needs, References, Scored, scored_by_group, zipped

NEEDS = Needs(by_group="accuracy")


class Options(MetricOptions):
    """How strictly texts are compared."""

    lowercase: bool = False  # compare in lower case


def score(
    predictions: Sequence[str], references: References, options: Options = Options(), *, groups: Groups | None = None
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
