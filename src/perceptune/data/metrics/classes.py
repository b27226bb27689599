"""Classes: accuracy, macro F1 and a table of confusions over a closed set of answers.

A prediction is the class that it equals, whitespace, a final period and with `lowercase` letter case aside, else none.
The classes are the `choices`, else the references. F1 of a class is 2 TP / (2 TP + FP + FN); macro F1 is its mean over
the classes that occur as references.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from perceptune.data.metrics import base

NEEDS = base.Needs(choices=True, by_group="accuracy")
MOST = 1000  # classes that a table of confusions has at most


class Options(base.MetricOptions):
    """Options of the comparison."""

    lowercase: bool = Field(False, description="compare in lower case")


def score(
    predictions: Sequence[str], references: base.References, options: Options = Options(), *,
    choices: Sequence[Sequence[str]] | None = None, groups: base.Groups | None = None,
) -> base.Scored:  # fmt: skip
    """Compute `accuracy` and `macro_f1` from 0 to 1, and `confusion`, the counts of predictions by class.

    A sample with several references belongs to the predicted one, if it is among them, else to the first. `confusion`
    has the `classes`, and in `counts` a row for each class with a column for each prediction, the last one for those
    that are no class. Raises `ValueError` if there are no samples, or one without references.
    """
    pairs = list(base.zipped(predictions, references))
    numbers: dict[str, int] = {}  # form of a class -> its number
    names = list[str]()

    def number(text: str) -> int:
        form = base.squeezed(text, lowercase=options.lowercase)
        if form not in numbers:
            numbers[form] = len(names)
            names.append(text)
        return numbers[form]

    for choice in _distinct(choices or ()):
        number(choice)
    accepted = [[number(reference) for reference in several] for _, several in pairs]
    predicted = [numbers.get(base.squeezed(text, lowercase=options.lowercase), -1) for text, _ in pairs]
    owners = [own if own in several else several[0] for own, several in zip(predicted, accepted, strict=True)]
    hits = [float(own in several) for own, several in zip(predicted, accepted, strict=True)]
    definition: dict[str, Any] = {
        "metric": "classes", **options.model_dump(), "classes": len(names), "choices_given": choices is not None,
        "macro_f1": "mean of F1 over the classes that occur as references",
    }  # fmt: skip
    scored = base.scored_by_group(hits, groups, definition)
    f1 = base.Corpus(_statistics(np.array(owners), np.array(predicted)), _macro_f1)
    value = float(_macro_f1(f1.statistics.sum(axis=0)))
    tables = {"confusion": _confusion(names, owners, predicted)} if len(names) <= MOST else {}
    return base.Scored(
        scored.summary | {"macro_f1": value}, scored.per_sample, scored.definition, {"macro_f1": f1}, tables
    )


def _distinct(choices: Iterable[Sequence[str]]) -> dict[str, None]:
    """Return all choices in order; samples of one task share one list, which is read once."""
    found: dict[str, None] = {}
    last: Sequence[str] = ()
    for several in choices:
        if several is not last:
            found.update(dict.fromkeys(several))
            last = several
    return found


def _statistics(owners: base.Ints, predicted: base.Ints) -> base.Floats:
    """Return for each sample and class that occurs: right, of the class, predicted as the class (samples, 3 k)."""
    occurring = np.unique(owners)
    of_class = owners[:, None] == occurring
    as_class = predicted[:, None] == occurring
    return np.concatenate([of_class & as_class, of_class, as_class], axis=1).astype(np.float64)


def _macro_f1(sums: base.Floats) -> base.Floats:
    right, of_class, as_class = np.split(sums, 3, axis=-1)
    total = of_class + as_class
    f1 = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
    occurs = of_class > 0  # a resample may lack a class
    found: base.Floats = np.where(occurs, f1, 0.0).sum(axis=-1) / occurs.sum(axis=-1)
    return found


def _confusion(names: Sequence[str], owners: Sequence[int], predicted: Sequence[int]) -> dict[str, Any]:
    counts = [[0] * (len(names) + 1) for _ in names]
    for owner, column in zip(owners, predicted, strict=True):
        counts[owner][column] += 1  # -1, no class, is the last column
    return {"classes": list(names), "counts": counts}
