"""CIDEr-D (Vedantam et al., 2015, section 5), which coco-caption calls CIDEr: 0 to 10, no stemming."""

import numpy as np

from perceptune.data.metrics._ngrams import Captions, Counts, Ints, NGramTable
from perceptune.data.metrics._scored import Floats

SIGMA = 6.0  # of the Gaussian penalty on a difference in length


class Cider:
    """CIDEr-D, accumulated order by order.

    A document for the document frequencies is the set of references of a sample; if `documents` numbers the documents
    of the further captions, only these are used.
    """

    def __init__(self, captions: Captions, documents: Ints | None = None) -> None:
        self._captions = captions
        self._documents = documents
        self.n_documents = captions.samples if documents is None else int(documents[-1]) + 1
        self._likeness: list[Floats] = []

    def add(self, table: NGramTable) -> None:
        """Add the next order: the cosine of tf-idf vectors, the prediction's clipped to the reference's."""
        rarity = np.log(self.n_documents) - np.log(np.maximum(1, self._frequencies(table)))
        predicted = table.predicted.times * rarity[table.predicted.gram]
        referred = table.referred.times * rarity[table.referred.gram]
        found = table.match >= 0
        common = np.minimum(predicted[table.match[found]], referred[found]) * referred[found]
        owners = self._captions.owners
        dot = np.bincount(table.referred.caption[found], weights=common, minlength=owners.size)
        norms = _norms(table.predicted, predicted, self._captions.samples)[owners]
        norms *= _norms(table.referred, referred, owners.size)
        self._likeness.append(np.divide(dot, norms, out=np.zeros(owners.size), where=norms > 0))

    def scores(self) -> Floats:
        """Return 10 times the mean over references and orders (samples,), with the penalty on length differences."""
        captions = self._captions
        # coco-caption uses the number of bigrams as the length of a caption, so one word counts as empty.
        predicted = np.maximum(0, captions.predicted_lengths - 1)[captions.owners]
        difference = (predicted - np.maximum(0, captions.reference_lengths - 1)).astype(np.float64)
        likeness = np.mean(self._likeness, axis=0) * np.exp(-(difference**2) / (2 * SIGMA**2))
        sums = np.bincount(captions.owners, weights=likeness, minlength=captions.samples)
        return 10 * sums / captions.references_each

    def _frequencies(self, table: NGramTable) -> Ints:
        """Return the document frequency (n-grams,) of each n-gram."""
        if self._documents is None:
            documents, counts = self._captions.owners, table.referred
        else:
            documents, counts = self._documents, table.further
        pairs = np.sort(documents[counts.caption] * table.grams + counts.gram)  # np.unique hashes, ten times as slow
        distinct = pairs[np.diff(pairs, prepend=-1) > 0]
        return np.bincount(distinct % table.grams, minlength=table.grams)


def _norms(counts: Counts, weights: Floats, captions: int) -> Floats:
    return np.sqrt(np.bincount(counts.caption, weights=weights**2, minlength=captions))
