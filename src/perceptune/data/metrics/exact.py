"""Exact match: an answer counts when it equals one of its references, whitespace and a final period aside."""

from collections.abc import Sequence

from perceptune.data.metrics.base import MetricOptions, Needs, score_of

NEEDS = Needs(by_group="accuracy")


class Options(MetricOptions):
    """Options of the comparison."""

    lowercase: bool = False  # compare in lower case


def accuracy(prediction: str, references: Sequence[str], options: Options) -> float:
    """Return 1 for a match, else 0."""
    return float(_squeeze(prediction, options) in {_squeeze(reference, options) for reference in references})


score = score_of("exact", accuracy, Options())


def _squeeze(text: str, options: Options) -> str:
    squeezed = " ".join(text.split())
    while squeezed.endswith("."):
        squeezed = squeezed.rstrip(".").rstrip()
    return squeezed.lower() if options.lowercase else squeezed
