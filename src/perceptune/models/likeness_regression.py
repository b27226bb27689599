"""Ridge regression of how like a text is to a medium's captions, on all training media.

For a text c let y_i(c) be its mean CIDEr-D with the captions of training medium i. What the captions of a new medium
would give is predicted from its vector q by ridge regression of y(c) on the vectors X (N, D) of the training media:

    y(c) = mean of y_i(c) + sum over i of a_i (y_i(c) - mean),  a = X (X'X + ridge I)^-1 q

(the kernel regression X (XX' + ridge I)^-1, in the form whose cost is linear in N). The weights do not depend on the
text, so y(c) is a sum over training media of weight x CIDEr-D. Unlike those of nearest neighbours they may be negative:
what unlike media show speaks against a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perceptune.data.metrics.base import CiderIndex, DocumentFrequencies

Doubles = NDArray[np.float64]


class LikenessRegression:
    """Predicts the likeness of texts to the captions of a medium that has none."""

    def __init__(
        self, vectors: Doubles, captions: Sequence[Sequence[str]], frequencies: DocumentFrequencies, ridge: float
    ) -> None:
        """Fit to the vectors (N, D) of training media, of length 1, and their captions."""
        self.frequencies, self.ridge = frequencies, ridge
        self._vectors, self._index = vectors, CiderIndex(captions, frequencies)
        self._gram = vectors.T @ vectors + ridge * np.eye(vectors.shape[1])

    def predict(self, texts: Sequence[str], vector: Doubles, left_out: Sequence[int] = ()) -> list[float]:
        """Return the CIDEr-D, on a scale of 0 to 10, of each text with the captions of a medium by its vector (D,).

        Media in the rows `left_out` count as not seen; all 0 if no others are left.
        """
        return [float(value) for value in self._index.weighted_sums(texts, self.weights(vector, left_out))]

    def weights(self, vector: Doubles, left_out: Sequence[int] = ()) -> Doubles:
        """Return the weights (N,) of the training media, with a sum of 1; 0 of those left out."""
        seen = np.ones(len(self._vectors), dtype=bool)
        seen[list(left_out)] = False
        own = self._vectors[~seen]
        weights = np.where(seen, self._vectors @ np.linalg.solve(self._gram - own.T @ own, vector), 0.0)
        count = int(seen.sum())
        return np.where(seen, weights - weights.sum() / count + 1 / count, 0.0) if count else weights
