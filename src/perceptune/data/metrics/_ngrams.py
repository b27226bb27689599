"""Words and n-grams of many captions as arrays, for BLEU, CIDEr and ROUGE-N.

Counting with arrays takes a fraction of the time of a dictionary per caption, with the same result.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceptune._version import __version__
from perceptune.data.metrics._groups import zipped
from perceptune.data.metrics._scored import Floats

Ints = NDArray[np.int64]
Tokenizer = Callable[[str], list[str]]


class Captions(NamedTuple):
    """Predictions, their references and optional captions of a corpus, concatenated, as word indices."""

    words: Ints  # word indices of all captions, concatenated
    lengths: Ints  # (captions,)
    owners: Ints  # (references,): the sample of each reference
    samples: int

    @property
    def predicted_lengths(self) -> Ints:
        """Lengths of the predictions (samples,)."""
        return self.lengths[: self.samples]

    @property
    def reference_lengths(self) -> Ints:
        """Lengths of the references (references,)."""
        return self.lengths[self.samples : self.samples + self.owners.size]

    @property
    def references_each(self) -> Ints:
        """Number of references of each sample (samples,)."""
        return np.bincount(self.owners, minlength=self.samples)

    def definition(self, metric: str, tokenizer: str) -> dict[str, Any]:
        """Return the definition of a metric for these captions, stored with its values."""
        each = self.references_each
        return {
            "metric": metric,
            "version": __version__,
            "tokenizer": tokenizer,
            "samples": self.samples,
            "references": {"min": int(each.min()), "max": int(each.max()), "mean": float(each.mean())},
        }


class Counts(NamedTuple):
    """Counts of n-grams in captions, sorted by caption, then by n-gram."""

    caption: Ints
    gram: Ints
    times: Ints

    def between(self, first: int, end: int) -> Counts:
        """Return the counts of the captions from `first` to before `end`, renumbered from 0."""
        low, high = np.searchsorted(self.caption, [first, end])
        return Counts(self.caption[low:high] - first, self.gram[low:high], self.times[low:high])


class NGramTable(NamedTuple):
    """The n-grams of one order."""

    predicted: Counts
    referred: Counts
    further: Counts
    match: Ints  # (entries of `referred`,): index of the prediction's entry with that n-gram, -1 for none
    grams: int  # number of distinct n-grams


class _Numbers(dict[str, int]):
    """A vocabulary that assigns indices to words in the order of first use."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def numbered(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenizer, further: Iterable[str] = ()
) -> Captions:
    """Convert captions to word indices. Raises `ValueError` if there are none or a sample has no reference."""
    owners: list[int] = []
    numbers, words, lengths = _Numbers(), array("q"), array("q")

    def add(texts: Iterable[str]) -> None:
        for text in texts:
            tokens = tokenize(text)
            words.extend(map(numbers.__getitem__, tokens))
            lengths.append(len(tokens))

    if not predictions:
        raise ValueError("there is nothing to score")
    add(predictions)
    for sample, (_, accepted) in enumerate(zipped(predictions, references)):
        add(accepted)
        owners += [sample] * len(accepted)
    add(further)
    return Captions(_ints(words), _ints(lengths), np.array(owners, dtype=np.int64), len(predictions))


def tables(captions: Captions, orders: int) -> Iterator[NGramTable]:
    """Yield the n-grams of order 1, 2, ... up to `orders`."""
    samples, references = captions.samples, captions.owners.size
    caption = np.repeat(np.arange(captions.lengths.size), captions.lengths)
    ends = np.repeat(np.cumsum(captions.lengths), captions.lengths)
    room = ends - np.arange(caption.size)  # number of words from here to the caption's end
    vocabulary = int(captions.words.max(initial=0)) + 1
    gram, grams = captions.words, vocabulary
    for order in range(1, orders + 1):
        starts = np.flatnonzero(room >= order)
        if order > 1:  # an n-gram is an (n-1)-gram and the next word
            distinct, inverse = np.unique(
                gram[starts] * vocabulary + captions.words[starts + order - 1], return_inverse=True
            )
            gram, grams = np.zeros_like(captions.words), max(1, distinct.size)
            gram[starts] = inverse
            del distinct, inverse
        entries, count = np.unique(caption[starts] * grams + gram[starts], return_counts=True)
        counts = Counts(entries // grams, entries % grams, count)
        predicted, referred = counts.between(0, samples), counts.between(samples, samples + references)
        further = counts.between(samples + references, captions.lengths.size)
        yield NGramTable(predicted, referred, further, _match(predicted, referred, captions.owners, grams), grams)


def rows_of(columns: Mapping[str, Floats]) -> list[dict[str, float]]:
    """Convert columns (samples,) to one row per sample."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _match(predicted: Counts, referred: Counts, owners: Ints, grams: int) -> Ints:
    if not predicted.gram.size:
        return np.full(referred.gram.size, -1)
    there = predicted.caption * grams + predicted.gram
    wanted = owners[referred.caption] * grams + referred.gram
    entry = np.minimum(np.searchsorted(there, wanted), there.size - 1)
    return np.where(there[entry] == wanted, entry, -1)


def _ints(values: array[int]) -> Ints:
    return np.frombuffer(values, dtype=np.int64) if values else np.empty(0, dtype=np.int64)
