"""CIDEr-D of a few texts against each other, with document frequencies of another set of captions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import log

import numpy as np

from perceptune.data.metrics._bleu import ORDERS
from perceptune.data.metrics._characters import character_tokens, lacks_blanks
from perceptune.data.metrics._cider import SIGMA
from perceptune.data.metrics._ngrams import Tokenizer
from perceptune.data.metrics._ptb import ptb_tokens
from perceptune.data.metrics._scored import Floats

_TOKENIZERS: dict[str, Tokenizer] = {"ptb": ptb_tokens, "characters": character_tokens}


@dataclass(frozen=True)
class DocumentFrequencies:
    """The number of documents that contain each n-gram; a document is all references of one medium.

    N-grams of one document are left out: CIDEr weighs them like those of none.
    """

    documents: int
    tokenizer: str
    counts: Mapping[str, int]  # n-gram, tokens separated by blanks -> documents, at least 2

    @classmethod
    def count(cls, documents: Sequence[Sequence[str]]) -> DocumentFrequencies:
        """Count the n-grams of documents. Raises `ValueError` if there are none."""
        if not documents:
            raise ValueError("there are no references")
        tokenizer = "characters" if lacks_blanks(chain.from_iterable(documents)) else "ptb"
        counts: Counter[str] = Counter()
        for texts in documents:
            tokens = [_TOKENIZERS[tokenizer](text) for text in texts]
            counts.update({gram for own in tokens for order in range(1, ORDERS + 1) for gram in ngrams(own, order)})
        return cls(len(documents), tokenizer, {gram: n for gram, n in sorted(counts.items()) if n > 1})

    def tokens(self, text: str) -> list[str]:
        """Tokenise a text as the documents were."""
        return _TOKENIZERS[self.tokenizer](text)

    def digest(self) -> str:
        """Return the SHA-256 of everything that the scores depend on."""
        return hashlib.sha256(
            json.dumps([self.documents, self.tokenizer, sorted(self.counts.items())]).encode()
        ).hexdigest()

    def rarity(self, gram: str) -> float:
        """Return the inverse document frequency of an n-gram."""
        return log(self.documents) - log(max(1, self.counts.get(gram, 1)))


def pairwise_cider(
    texts: Sequence[str], frequencies: DocumentFrequencies, references: Sequence[str] | None = None
) -> Floats:
    """Return CIDEr-D (n, m) from 0 to 10 of each text, by row, with each reference, by column, as its only one.

    The references are the texts themselves unless others are given.
    """
    n, others = len(texts), () if references is None else references
    columns = slice(0 if references is None else n, None)
    captions = [frequencies.tokens(text) for text in (*texts, *others)]
    likeness = np.zeros((n, len(captions)))[:, columns]
    for order in range(1, ORDERS + 1):
        times = [Counter(ngrams(caption, order)) for caption in captions]
        numbers = {gram: number for number, gram in enumerate(dict.fromkeys(chain.from_iterable(times)))}
        vectors = np.zeros((len(captions), len(numbers)))
        for row, own in enumerate(times):
            for gram, count in own.items():
                vectors[row, numbers[gram]] = count * frequencies.rarity(gram)
        norms = np.sqrt((vectors**2).sum(1))
        # Clipped to the reference's; row by row, as all at once would need a number for each pair and n-gram.
        given = vectors[columns]
        common = np.array([(np.minimum(own, given) * given).sum(1) for own in vectors[:n]])
        both = np.outer(norms[:n], norms[columns])
        likeness += np.divide(common, both, out=np.zeros_like(common), where=both > 0)
    lengths = np.array([length_of(caption) for caption in captions], dtype=float)
    penalty: Floats = np.exp(-((lengths[:n, None] - lengths[columns]) ** 2) / (2 * SIGMA**2))
    return 10 * likeness / ORDERS * penalty


def length_of(tokens: Sequence[str]) -> int:
    """Return the length of a caption that is compared, as in `Cider.scores`."""
    return max(0, len(tokens) - 1)


def ngrams(tokens: Sequence[str], order: int) -> Iterator[str]:
    """Yield the n-grams of an order, tokens separated by blanks."""
    starts: Iterable[int] = range(len(tokens) - order + 1)
    return (" ".join(tokens[start : start + order]) for start in starts)
