"""A-OKVQA's direct answers: min(1, equal answers / 3), compared as they are written.

As in the data set's evaluation code nothing is normalised. It leaves out the questions marked
`difficult_direct_answer`; whoever calls this does that.
"""

from collections.abc import Sequence

from perceptune.data.metrics.base import Groups, MetricOptions, Needs, References, Scored, scored_by_group, zipped

NEEDS = Needs(
    "answers", prediction_key="direct_answer", not_counted=("difficult_direct_answer", True), by_group="accuracy"
)


class Options(MetricOptions):
    """There is nothing to choose but the predictions' case."""

    lowercase: bool = False  # predictions are written in lower case first


def score(
    predictions: Sequence[str], references: References, options: Options = Options(), *, groups: Groups | None = None
) -> Scored:
    """`accuracy` between 0 and 1; `references` are the annotators' answers.

    Raises `ValueError` if there are no samples, or one without answers.
    """
    values = []
    for prediction, answers in zipped(predictions, references):
        given = prediction.lower() if options.lowercase else prediction
        values.append(min(1.0, sum(answer == given for answer in answers) / 3))
    return scored_by_group(values, groups, {"metric": "a-okvqa", **options.model_dump()})
