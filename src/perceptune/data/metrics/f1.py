"""Token F1 of short answers as in SQuAD: shared words, the best of the references.

Normalisation is SQuAD's: lower case, without ASCII punctuation, without a/an/the, whitespace squeezed. Where the
prediction or a reference has no words left, it is 1 if neither has, else 0.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from perceptune.data.metrics.base import MetricOptions, Needs, score_of

NEEDS = Needs(by_group="f1")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class Options(MetricOptions):
    """No options."""


def best_f1(prediction: str, references: Sequence[str], options: Options) -> float:
    """Compute the maximum F1 over the references, from 0 to 1."""
    return max(f1(_words(prediction), _words(reference)) for reference in references)


score = score_of("f1", best_f1, Options(), key="f1")


def f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    """Compute the harmonic mean of precision and recall; a word counts as often as it occurs in both."""
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (Counter(given) & Counter(wanted)).total() / (len(given) + len(wanted))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
