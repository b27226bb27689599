"""ROUGE-1, ROUGE-2 and ROUGE-L, F1 and recall, as the package rouge-score computes them, without stemming.

Their keys are their own: coco-caption's `ROUGE-L` (metric `caption`) has other tokens, mixes references and weighs
recall more.
"""

import re
from collections.abc import Sequence

import numpy as np

from perceptune.data.metrics import base

NEEDS = base.Needs()
TOKENIZER = "lower-case letters a to z and digits, no stemming"
_WORD = re.compile(r"[a-z0-9]+")


class Options(base.MetricOptions):
    """No options."""


def score(predictions: Sequence[str], references: base.References, options: Options = Options()) -> base.Scored:
    """Compute `rouge1_f1_mean` and so on: `rouge1`, `rouge2`, `rougeL`; `f1`, `recall`; `mean`, `best`; from 0 to 1.

    `mean` is the mean over a sample's references. `best` is the reference with the maximum F1, the first of several
    (rouge-score's `score_multi`), with its recall. Raises `ValueError` if there is nothing to score or a sample has no
    reference.
    """
    captions = base.numbered(predictions, references, lambda text: _WORD.findall(text.lower()))
    columns: dict[str, base.Floats] = {}
    for order, table in enumerate(base.tables(captions, 2), 1):
        columns |= _columns(f"rouge{order}", captions, _shared(table, captions), order)
    columns |= _columns("rougeL", captions, base.common_lengths(captions), 1)
    definition = captions.definition("ROUGE-1, ROUGE-2, ROUGE-L (F1, recall) as in rouge-score", TOKENIZER)
    summary = {key: float(np.mean(column)) for key, column in columns.items()}
    return base.Scored(summary, base.rows_of(columns), definition | {"scale": [0, 1]})


def _shared(table: base.NGramTable, captions: base.Captions) -> base.Ints:
    """Count the n-grams (references,) that a reference and its prediction share, with multiplicity."""
    found = table.match >= 0
    both = np.minimum(table.predicted.times[table.match[found]], table.referred.times[found])
    return np.bincount(table.referred.caption[found], weights=both, minlength=captions.owners.size).astype(np.int64)


def _columns(name: str, captions: base.Captions, shared: base.Ints, order: int) -> dict[str, base.Floats]:
    """Return the columns (samples,) of one kind of ROUGE, from the counts `shared` (references,)."""
    predicted = np.maximum(1, captions.predicted_lengths[captions.owners] - order + 1)
    recall = shared / np.maximum(1, captions.reference_lengths - order + 1)
    precision = shared / predicted
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    best = np.lexsort((np.arange(f1.size), -f1, captions.owners))
    best = best[np.flatnonzero(np.diff(captions.owners[best], prepend=-1))]
    columns: dict[str, base.Floats] = {}
    for key, values in (("f1", f1), ("recall", recall)):
        sums = np.bincount(captions.owners, weights=values, minlength=captions.samples)
        columns |= {f"{name}_{key}_mean": sums / captions.references_each, f"{name}_{key}_best": values[best]}
    return columns
