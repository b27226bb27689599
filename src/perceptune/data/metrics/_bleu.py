"""BLEU-1 to BLEU-4 as coco-caption computes them (Papineni et al., 2002; the closest reference length)."""

from collections.abc import Callable

import numpy as np

from perceptune.data.metrics._ngrams import Captions, Ints, NGramTable
from perceptune.data.metrics._scored import Corpus, Floats

ORDERS = 4
# As in coco-caption: a precision without matches is not 0, so that the BLEU of one sentence is small but positive.
_TINY, _SMALL = 1e-15, 1e-9


class Bleu:
    """BLEU, accumulated order by order."""

    def __init__(self, captions: Captions) -> None:
        self._captions = captions
        self._matched: list[Ints] = []

    def add(self, table: NGramTable) -> None:
        """Add the next order: matched n-grams, each clipped to its maximum count in a reference."""
        found = table.match >= 0
        most = np.zeros_like(table.predicted.times)
        np.maximum.at(most, table.match[found], table.referred.times[found])
        kept = np.minimum(table.predicted.times, most)
        self._matched.append(np.bincount(table.predicted.caption, weights=kept, minlength=self._captions.samples))

    def values(self) -> dict[str, Corpus]:
        """Return `BLEU-1`, ... of the set; with the statistics of one sample, they are its sentence BLEU.

        The statistics of a sample are the closest reference's length, then for each order the number of n-grams of its
        prediction, then for each order the number of those matched.
        """
        length = self._captions.predicted_lengths
        guessed = [np.maximum(0, length - order) for order in range(ORDERS)]
        statistics = np.column_stack([_closest_length(self._captions), *guessed, *self._matched]).astype(np.float64)
        return {f"BLEU-{order}": Corpus(statistics, _bleu(order)) for order in range(1, ORDERS + 1)}


def _bleu(order: int) -> Callable[[Floats], Floats]:
    def value(sums: Floats) -> Floats:
        reference_length, guessed, matched = sums[..., 0], sums[..., 1 : 1 + ORDERS], sums[..., 1 + ORDERS :]
        precision = (matched[..., :order] + _TINY) / (guessed[..., :order] + _SMALL)
        ratio = (guessed[..., 0] + _TINY) / (reference_length + _SMALL)
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        return precision.prod(axis=-1) ** (1 / order) * brevity

    return value


def _closest_length(captions: Captions) -> Ints:
    """Return the reference length (samples,) closest to the prediction's; the shorter one of two equally close."""
    lengths = captions.reference_lengths
    distance = np.abs(lengths - captions.predicted_lengths[captions.owners])
    order = np.lexsort((lengths, distance, captions.owners))
    first = np.flatnonzero(np.diff(captions.owners[order], prepend=-1))
    return lengths[order][first]
