"""A-OKVQA's direct answers: min(1, equal answers / 3), compared as they are written.

As in the data set's evaluation code nothing is normalised. It leaves out the questions marked
`difficult_direct_answer`; whoever calls this does that.
"""

from collections.abc import Sequence

from perceptune.data.metrics.base import MetricOptions, Needs, score_of

NEEDS = Needs(
    "answers", prediction_key="direct_answer", not_counted=("difficult_direct_answer", True), by_group="accuracy"
)


class Options(MetricOptions):
    """There is nothing to choose but the predictions' case."""

    lowercase: bool = False  # predictions are written in lower case first


def accuracy(prediction: str, answers: Sequence[str], options: Options) -> float:
    """Between 0 and 1, of the annotators' `answers`."""
    given = prediction.lower() if options.lowercase else prediction
    return min(1.0, answers.count(given) / 3)


score = score_of("a-okvqa", accuracy, Options())
