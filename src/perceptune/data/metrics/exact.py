"""Exact match: an answer counts when it equals one of its references, whitespace and a final period aside."""

from collections.abc import Sequence

from perceptune.data.metrics.base import MetricOptions, Needs, score_of, squeezed

NEEDS = Needs(by_group="accuracy")


class Options(MetricOptions):
    """Options of the comparison."""

    lowercase: bool = False  # compare in lower case


def accuracy(prediction: str, references: Sequence[str], options: Options) -> float:
    """Return 1 for a match, else 0."""
    found, *right = (squeezed(text, lowercase=options.lowercase) for text in (prediction, *references))
    return float(found in right)


score = score_of("exact", accuracy, Options())
