"""GQA accuracy: the one right answer, and how consistent right answers are with what follows from them.

`official` compares as written, as the data set's evaluation code does; `lmms-eval` ignores case and ASCII punctuation;
`epalm` compares what VQA's rules make of both, as eP-ALM's released code does here and for questions about videos.
Validity and plausibility need the data set's file of choices, grounding its scene graphs: they are not computed.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Literal

from perceptune.data.metrics.base import MetricOptions, Needs, normalise, score_of

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Options(MetricOptions):
    """Options of the comparison."""

    dialect: Literal["official", "lmms-eval", "epalm"] = "official"
    lowercase: bool = False  # whether predictions are converted to lower case first, as GQA's answers are


def accuracy(prediction: str, references: Sequence[str], options: Options) -> float:
    """Return 1 for a match, else 0."""
    given = prediction.lower() if options.lowercase else prediction
    return float(_form(given, options) in {_form(reference, options) for reference in references})


score = score_of("gqa", accuracy, Options())


def consistency(right: Mapping[str, float], entailed: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Compute for each correctly answered question the accuracy over those it entails; the mean is the consistency.

    `right` maps each question's id to 1 or 0, `entailed` to the ids that it entails. Raises `KeyError` if one of those
    has no answer. A question that entails no other does not count.
    """
    found = {}
    for question, ids in entailed.items():
        others = [other for other in ids if other != question]
        if right[question] and others:
            found[question] = sum(right[other] for other in others) / len(others)
    return found


NEEDS = Needs(not_counted=("isBalanced", False), by_group="accuracy", consistency=consistency)


def _form(text: str, options: Options) -> str:
    if options.dialect == "epalm":
        return normalise(text)
    return text if options.dialect == "official" else text.lower().translate(_PUNCTUATION).strip()
