"""CIDEr-D of a few texts with many documents at once, each with a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from perceptune.data.metrics._bleu import ORDERS
from perceptune.data.metrics._cider import SIGMA
from perceptune.data.metrics._pairwise_cider import DocumentFrequencies, length_of, ngrams
from perceptune.data.metrics._scored import Floats

_Key = tuple[str, int]  # n-gram, and which of its occurrences in a text


class CiderIndex:
    """References of documents by their n-grams, so that texts meet only the references that share some with them.

    An n-gram that a text has a times and a reference b times adds min(a, b) x b x rarity^2 to their product, which is b
    x rarity^2 for each of the occurrences that both have: a sum over pairs (n-gram, occurrence), linear in a
    reference's weight.
    """

    def __init__(self, documents: Sequence[Sequence[str]], frequencies: DocumentFrequencies) -> None:
        self._frequencies = frequencies
        texts = list(chain.from_iterable(documents))
        each = np.array([len(own) for own in documents])
        self._owners = np.repeat(np.arange(len(documents)), each)
        self._shares = 1 / each[self._owners]
        tokens = [frequencies.tokens(text) for text in texts]
        self._lengths = np.array([length_of(own) for own in tokens])
        found: dict[_Key, list[tuple[int, float]]] = {}
        for number, own in enumerate(tokens):
            for counts, norm in self._vectors(own):
                for gram, count in counts.items():
                    value = count * frequencies.rarity(gram) ** 2 / norm
                    for occurrence in range(1, count + 1):
                        found.setdefault((gram, occurrence), []).append((number, value))
        self._numbers = {key: number for number, key in enumerate(found)}
        self._starts = np.cumsum([0, *map(len, found.values())])
        self._references = np.array([number for own in found.values() for number, _ in own], dtype=np.int64)
        self._values = np.array([value for own in found.values() for _, value in own])

    def weighted_sums(self, texts: Sequence[str], weights: Floats) -> Floats:
        """Return for each text the sum over documents of their weight (D,) x its mean CIDEr-D with their references."""
        own = weights[self._owners] * self._shares
        return np.array([self._sum(self._frequencies.tokens(text), own) for text in texts])

    def _sum(self, tokens: Sequence[str], weights: Floats) -> float:
        total = 0.0
        weights = weights * np.exp(-((self._lengths - length_of(tokens)) ** 2) / (2 * SIGMA**2))
        for counts, norm in self._vectors(tokens):
            shared = [
                number for gram, count in counts.items() for occurrence in range(1, count + 1)
                if (number := self._numbers.get((gram, occurrence))) is not None
            ]  # fmt: skip
            parts = [slice(self._starts[number], self._starts[number + 1]) for number in shared]
            total += sum(float(self._values[part] @ weights[self._references[part]]) for part in parts) / norm
        return 10 * total / ORDERS

    def _vectors(self, tokens: Sequence[str]) -> Iterator[tuple[Mapping[str, int], float]]:
        """Yield the n-grams of each order with their numbers, and the length of their vector unless it is 0."""
        for order in range(1, ORDERS + 1):
            counts = Counter(ngrams(tokens, order))
            norm = float(np.sqrt(sum((n * self._frequencies.rarity(gram)) ** 2 for gram, n in counts.items())))
            if norm > 0:
                yield counts, norm
