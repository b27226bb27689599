"""The longest common subsequence, and ROUGE-L as coco-caption computes it (Lin, 2004)."""

import numpy as np

from perceptune.data.metrics._ngrams import Captions, Ints
from perceptune.data.metrics._scored import Floats

_BETA = 1.2  # coco-caption's weight of recall against precision


def common_lengths(captions: Captions) -> Ints:
    """Return the length (references,) of the longest common subsequence of each reference and its prediction.

    Bit-parallel (Hyyrö, 2004): a column of the table is stored in the bits of one integer, so a pair takes one step per
    word.
    """
    words = captions.words.tolist()
    ends = np.cumsum(captions.lengths).tolist()
    starts = [0, *ends]
    lengths = []
    reference = captions.samples
    for sample, several in enumerate(captions.references_each.tolist()):
        places: dict[int, int] = {}  # word -> bits of its positions in the prediction
        for place, word in enumerate(words[starts[sample] : ends[sample]]):
            places[word] = places.get(word, 0) | 1 << place
        every = (1 << (ends[sample] - starts[sample])) - 1
        for _ in range(several):
            column = every
            for word in words[starts[reference] : ends[reference]]:
                if word in places:
                    common = column & places[word]
                    column = (column + common) | (column - common)
            lengths.append((~column & every).bit_count())
            reference += 1
    return np.array(lengths, dtype=np.int64)


def rouge_l(captions: Captions, common: Ints) -> Floats:
    """Return the F-measure (samples,) of the maximum precision and maximum recall, possibly of different references."""
    predicted, referred = captions.predicted_lengths[captions.owners], captions.reference_lengths
    # coco-caption treats an empty caption as one empty word, so two empty captions are equal.
    common = np.where((predicted == 0) & (referred == 0), 1, common)
    precision, recall = np.zeros(captions.samples), np.zeros(captions.samples)
    np.maximum.at(precision, captions.owners, common / np.maximum(1, predicted))
    np.maximum.at(recall, captions.owners, common / np.maximum(1, referred))
    weight = _BETA**2
    divisor = recall + weight * precision
    return np.divide((1 + weight) * precision * recall, divisor, out=np.zeros_like(divisor), where=divisor > 0)
