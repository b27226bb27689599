"""A-OKVQA's direct answers: min(1, equal answers / 3), compared as they are written.

As in the data set's evaluation code, answers are not normalised. The caller must skip the questions marked
`difficult_direct_answer`, as that code does.
"""

from collections.abc import Sequence

from perceptune.data.metrics.base import MetricOptions, Needs, score_of

NEEDS = Needs(
    "answers", prediction_key="direct_answer", not_counted=("difficult_direct_answer", True), by_group="accuracy"
)


class Options(MetricOptions):
    """The case of predictions."""

    lowercase: bool = False  # whether predictions are converted to lower case first


def accuracy(prediction: str, answers: Sequence[str], options: Options) -> float:
    """Compute the score of a prediction, from 0 to 1, by the annotators' `answers`."""
    given = prediction.lower() if options.lowercase else prediction
    return min(1.0, answers.count(given) / 3)


score = score_of("a-okvqa", accuracy, Options())
